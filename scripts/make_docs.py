"""Write the pages of docs/ that are made from the program, so that none of them can grow stale.

    python scripts/make_docs.py [--check]

`docs/commands.md` is every command with its options, `docs/schema.md` the database drawn from the models,
`docs/settings.md` the commented `espctl.toml`, `docs/reliability.md` what is promised with the newest figures of
results/. `--check` changes nothing and fails when a page differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from espctl import cli
from espctl.store.models import Base

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "scripts"))  # when a test loads this file by its path

import reliability  # noqa: E402

DOCS = TOP / "docs"
NOTE = "<!-- made by scripts/make_docs.py: edit the program, not this page -->\n"


def pages() -> dict[Path, str]:
    """Path -> text of every generated page."""
    settings = (TOP / "espctl.toml").read_text(encoding="utf-8")
    return {
        DOCS / "commands.md": NOTE + "# Commands\n\n" + "\n".join(_commands()),
        DOCS / "schema.md": NOTE + _schema(),
        DOCS / "reliability.md": NOTE + reliability.page(TOP / "results"),
        DOCS / "settings.md": f"{NOTE}# Settings\n\nEvery setting with its default.\n\n```toml\n{settings}```\n",
    }


def _commands() -> list[str]:
    root = typer.Context(typer.main.get_command(cli.app), info_name="espctl")
    parts = ["Printed from the program. `espctl COMMAND --help` says the same.\n"]
    for name in cli.COMMANDS:
        parts += _command(cli.load_command(name), f"espctl {name}", root)
    return parts


def _command(command: Any, path: str, parent: Any) -> list[str]:
    """The sections of a command and of those below it."""
    context = typer.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    text = (command.help or command.short_help or "").strip()
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parts = [f"## `{path}`\n", f"{text}\n" if text else "", f"```text\n{usage}\n```\n"]
    if rows := [row for row in (_parameter(p, context) for p in shown) if row]:
        parts += ["| option | meaning |", "| --- | --- |", *rows, ""]
    for name, child in getattr(command, "commands", {}).items():
        parts += _command(child, f"{path} {name}", context)
    return parts


def _parameter(parameter: Any, context: Any) -> str:
    record = parameter.get_help_record(context)
    if record is None:
        return ""
    names, meaning = (text.replace("|", "\\|").replace("\n", " ") for text in record)
    return f"| `{names.strip()}` | {meaning.strip()} |"


def _schema() -> str:
    """An entity-relationship diagram in Mermaid, and the indices."""
    lines = ["# Database\n", "The run folders are the truth; the database can be made from them again.\n"]
    lines += ["```mermaid", "erDiagram"]
    tables = Base.metadata.sorted_tables
    for table in tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            lines.append(f"  {key.column.table.name} ||--o{{ {table.name} : {key.parent.name}")
    for table in tables:
        lines.append(f"  {table.name} {{")
        for column in table.columns:
            kind = type(column.type).__name__.lower()
            marks = ["PK"] * column.primary_key + ["FK"] * bool(column.foreign_keys)
            lines.append(f"    {kind} {column.name} {', '.join(marks)}".rstrip())
        lines.append("  }")
    lines += ["```\n", "| table | what a row is | indices |", "| --- | --- | --- |"]
    texts = {str(mapper.class_.__tablename__): (mapper.class_.__doc__ or "") for mapper in Base.registry.mappers}
    for table in tables:
        indices = sorted(", ".join(column.name for column in index.columns) for index in table.indexes)
        first = " ".join(texts[table.name].split("\n\n")[0].split())
        lines.append(f"| `{table.name}` | {first} | {'; '.join(f'`{index}`' for index in indices)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those that are stale."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        print("\n".join(f"stale: {path.relative_to(TOP)}" for path in stale))
        return bool(stale)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
