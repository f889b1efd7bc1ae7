"""One table, as Markdown, CSV or LaTeX text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

Rows = Sequence[Sequence[str]]

_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def markdown(columns: Sequence[str], rows: Rows, caption: str) -> str:
    """A pipe table with its caption below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows), "", caption])


def comma_separated(columns: Sequence[str], rows: Rows, caption: str) -> str:
    """CSV with a heading; it has no place for a caption."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([columns, *rows])
    return buffer.getvalue().rstrip("\n")


def latex(columns: Sequence[str], rows: Rows, caption: str) -> str:
    """A table in the style of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_escape, cells)) + r" \\"

    body = [line(columns), r"\midrule", *map(line, rows)]
    head = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule"]
    return "\n".join(
        [*head, *body, r"\bottomrule", r"\end{tabular}", rf"\caption{{{_escape(caption)}}}", r"\end{table}"]
    )


def _escape(text: str) -> str:
    escaped = "".join(_LATEX.get(c, r"\textbackslash{}" if c == "\\" else c) for c in text.replace("\n", " "))
    return escaped.replace("±", r"$\pm$").replace("—", "---")


FORMATS: dict[str, Callable[[Sequence[str], Rows, str], str]] = {"md": markdown, "csv": comma_separated, "latex": latex}
