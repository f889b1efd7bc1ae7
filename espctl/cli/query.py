"""`espctl query`: SQL over the database, read-only."""

from __future__ import annotations

import csv as writer
import io
from typing import Annotated

import typer

from espctl.cli import options


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help='For example "select id, state from runs".')],
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV in place of a table.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Rows at most; 0 for all.")] = 10_000,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds after which it is stopped.")] = 30.0,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Ask the database in SQL; it is opened read-only. `select sql from sqlite_schema` shows its tables."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import query as service
    from espctl.services.project import Project

    if csv and json:
        raise UsageError("--csv and --json exclude each other", "give one of them")
    project = Project.open(options.output_flags(home, json))
    found = service.ask(project, sql, limit or None, timeout)
    if csv:
        text = io.StringIO()
        writer.writer(text, lineterminator="\n").writerows([found.columns, *found.rows])
        render.block(text.getvalue().removesuffix("\n"))
    elif project.settings.output.json:
        render.emit_json([dict(zip(found.columns, row, strict=True)) for row in found.rows])
    elif found.rows:
        render.table(found.columns, found.rows)
    else:
        render.note("no rows")
    if found.more:
        render.note(f"there are more than {limit} rows: give --limit, or 0 for all")
