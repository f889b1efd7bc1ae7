"""Fill the marked blocks of README.md from files under results/, so that no number in it is typed by hand.

    python scripts/fill_readme.py [--check]

A block begins with `<!-- from results/FILE -->` and ends with `<!-- end -->`. A Markdown file is put in as it is, any
other text as a code block. Of benches, as in `results/*-cpu-*-bench.json`, it is the table of what is to be reached,
with each part from the last that measured it. Nothing is changed where there is no such file yet. `--check`
changes nothing at all and fails when a block differs from its file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- from (?P<file>results/[\w./*-]+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(text: str, top: Path = TOP) -> str:
    """`text` with every block renewed."""

    def block(match: re.Match[str]) -> str:
        found = sorted(top.glob(match["file"]))
        if not found:
            return match[0]
        if found[-1].name.endswith("-bench.json"):
            body = bench_table([json.loads(file.read_text(encoding="utf-8")) for file in found])
        else:
            content = found[-1].read_text(encoding="utf-8").rstrip("\n")
            body = content if found[-1].suffix == ".md" else f"```console\n{content}\n```"
        return f"<!-- from {match['file']} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(block, text)


def bench_table(benches: list[dict[str, Any]]) -> str:
    """Markdown of the rows that have a bound, each part of the last bench that has it, and where it was measured."""
    head = "| | what | against | ours | theirs | ratio or value (range, n) | at most | reached | measured on |"
    lines = [head, "| --- " * 9 + "|"]
    ordered = sorted(benches, key=lambda bench: str(bench.get("at", bench["date"])))
    newest = {row["measured_by"]: bench for bench in ordered for row in bench["rows"]}
    for part, bench in newest.items():
        rows = [row for row in bench["rows"] if row["measured_by"] == part]
        lines += [_line(row) for row in rows if row["target"] is not None]
    lines += ["", "Median over pairs taken by turns; all rows and settings are in `results/`. Measured on:", ""]
    for bench in {id(bench): bench for bench in newest.values()}.values():
        parts = ", ".join(part for part, of in newest.items() if of is bench)
        facts = f"size {bench['size']}, torch {bench['torch']}, commit {bench['commit']}, {bench['date']}"
        lines += [f"- {parts}: {bench['device']}, {facts}"]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    unit, ratio = row["unit"], row["ratio"] is not None
    low, high = (f"{row[end]:.3g}" if ratio else value_text(row[end], unit) for end in ("low", "high"))
    main = f"{row['ratio']:.3g}" if ratio else value_text(row["ours"], unit)
    bound = f"{row['target']:.3g}" if ratio else value_text(row["target"], unit)
    theirs = "" if row["other"] is None else value_text(row["other"], unit)
    span = f"{main} ({low} to {high}, {row['runs']})"
    cells = [row["part"], row["what"], row["against"], value_text(row["ours"], unit), theirs, span]
    return "| " + " | ".join([*cells, bound, "yes" if row["reached"] else "**no**", row["note"]]) + " |"


def value_text(value: float, unit: str) -> str:
    """Seconds or bytes as people read them."""
    if unit == "B":
        return f"{value / 1e6:,.3g} MB" if value >= 1e5 else f"{value / 1e3:.3g} kB"
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def main(arguments: list[str]) -> int:
    """Renew README.md, or with `--check` say whether it is fresh."""
    readme = TOP / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = fill(old)
    if "--check" in arguments:
        return 0 if new == old else 1
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
