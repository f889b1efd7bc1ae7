"""Fill the marked blocks of README.md from files under results/, so that no number in it is typed by hand.

    python scripts/fill_readme.py [--check]

A block begins with `<!-- from results/FILE -->` and ends with `<!-- end -->`. A Markdown file is put in as it is, any
other text as a code block. `--check` changes nothing and fails when a block differs from its file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- from (?P<file>results/[\w./-]+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(text: str, top: Path = TOP) -> str:
    """`text` with every block renewed."""

    def block(match: re.Match[str]) -> str:
        content = (top / match["file"]).read_text(encoding="utf-8").rstrip("\n")
        body = content if match["file"].endswith(".md") else f"```console\n{content}\n```"
        return f"<!-- from {match['file']} -->\n{body}\n<!-- end -->"

    return BLOCK.sub(block, text)


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
