"""Fill the marked blocks of README.md from files under results/, so that no number in it is typed by hand.

    python scripts/fill_readme.py [--check]

A block begins with `<!-- from results/FILE -->` and ends with `<!-- end -->`. A Markdown file is put in as it is, any
other text as a code block. Where the name has a `*`, as in `results/*-cpu-*-bench.json`, the newest such file is meant;
of a bench it is the table of what is to be reached. Nothing is changed where there is no such file yet. `--check`
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
        file = _newest(top, match["file"])
        if file is None:
            return match[0]
        content = file.read_text(encoding="utf-8").rstrip("\n")
        if file.name.endswith("-bench.json"):
            body = bench_table(json.loads(content))
        else:
            body = content if file.suffix == ".md" else f"```console\n{content}\n```"
        return f"<!-- from {match['file']} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(block, text)


def _newest(top: Path, name: str) -> Path | None:
    """The file of a name, or the newest of a pattern: first by the day that it is named after, then by its time."""
    if "*" not in name:
        return top / name
    found = sorted(top.glob(name), key=lambda path: (path.name[:10], path.stat().st_mtime))
    return found[-1] if found else None


def bench_table(bench: dict[str, Any]) -> str:
    """Markdown of the rows of a bench that have a bound, and where it was measured."""
    lines = ["| what | against | ours | theirs | ratio or value (range, n) | at most | reached |", "| --- " * 7 + "|"]
    for row in bench["rows"]:
        if row["target"] is None:
            continue
        unit, ratio = row["unit"], row["ratio"] is not None
        low, high = (f"{row[end]:.3g}" if ratio else value_text(row[end], unit) for end in ("low", "high"))
        main = f"{row['ratio']:.3g}" if ratio else value_text(row["ours"], unit)
        bound = f"{row['target']:.3g}" if ratio else value_text(row["target"], unit)
        theirs = "" if row["other"] is None else value_text(row["other"], unit)
        span = f"{main} ({low} to {high}, {row['runs']})"
        cells = [row["what"], row["against"], value_text(row["ours"], unit), theirs, span]
        lines.append("| " + " | ".join([*cells, bound, "yes" if row["reached"] else "**no**"]) + " |")
    facts = f"{bench['device']}, torch {bench['torch']}, commit {bench['commit']}, {bench['date']}"
    lines += [
        "",
        f"Median over pairs taken by turns, size {bench['size']}, {facts}; all rows and settings are in `results/`.",
    ]
    return "\n".join(lines)


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
