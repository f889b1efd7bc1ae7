"""A table as Markdown, CSV or LaTeX text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict

from espctl.report.model import Grid, Row
from espctl.report.published import highest

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
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "—": "---",
    "\u200b": "{}",
    "…": r"\dots{}",
    "×": r"$\times$",
}
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # made narrower where it is too wide
_NUMBER = re.compile(r"-|[+-]?\d+(\.\d+)?( ±.*)?( [*?])?")
_FLAT = (
    "dataset", "method", "options", "stored", "ipc", "preset", "network", "protocol", "mean", "sd", "n", "best",
    "published", "published_sd", "difference", "comparable",
)  # fmt: skip


def numeric(cells: Sequence[str]) -> bool:
    """Whether cells are numbers, with or without a deviation and a mark, or the dash of a missing one; at least one."""
    return any(cell != "-" for cell in cells) and all(_NUMBER.fullmatch(cell) for cell in cells)


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
    """A table in the style of booktabs, numbers to the right."""

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(map(_escape, cells))
        return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"  # else the \\ before it would read them

    places = "".join("r" if numeric([row[i] for row in rows]) else "l" for i in range(len(columns)))
    body = [line(columns), r"\midrule", *map(line, rows)]
    head = [r"\begin{table}", r"\centering", _FITTED, rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    tail = [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{_escape(caption)}}}", r"\end{table}"]
    return "\n".join([*head, *body, *tail])


def records(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Rows of a table as plain values for CSV: numbers without rounding, runs and files separated by spaces."""
    optional = [name for name in ("cost", "measures") if any(getattr(row, name) for row in rows)]
    lines = []
    for row in rows:
        values = asdict(row)
        line = {name: values[name] for name in _FLAT}
        line |= {"runs": " ".join(row.runs), "files": " ".join(one.file or "" for one in row.evaluations).strip()}
        if any(other.best_known for other in rows):
            best = highest(row.best_known)
            line |= {"best_known": best.mean if best else None, "best_known_method": best.method if best else None}
        for name in optional:
            line |= {key: item for key, item in values[name].items() if not isinstance(item, tuple)}
        lines.append({name: "" if value is None else str(value) for name, value in line.items()})
    return list(lines[0]), [list(line.values()) for line in lines]


def text_of(name: str, grids: Sequence[Grid], rows: Sequence[Row]) -> str:
    """Tables in the format `name`; CSV has one table only, with what the others show in further columns."""
    if name == "csv":
        return comma_separated(*records(rows), "")
    made = [FORMATS[name](grid.columns, grid.cells, grid.caption) for grid in grids]
    return "\n\n".join([*(["% needs \\usepackage{booktabs,graphicx}"] if name == "latex" else []), *made])


def _escape(text: str) -> str:
    text = text.replace("--", "-\u200b-")  # two hyphens would become a dash
    return "".join(_LATEX.get(c) or (c if c.isprintable() and ord(c) < 256 else _foreign(c)) for c in text)


def _foreign(character: str) -> str:
    """A space for a line break; the number of a character that LaTeX's standard fonts do not have."""
    return " " if character in "\n\t\r" else f"[U+{ord(character):04X}]"


FORMATS: dict[str, Callable[[Sequence[str], Rows, str], str]] = {"md": markdown, "csv": comma_separated, "latex": latex}
