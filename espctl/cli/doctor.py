"""`espctl doctor`: what is missing or broken, with a remedy for each."""

from __future__ import annotations

from typing import Annotated

import typer

from espctl.cli import options


def doctor(
    fast: Annotated[bool, typer.Option("--fast", help="Leave out the trial compilation.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Look at the installation, the machine and the project; exit 1 when something fails. Nothing is changed."""
    from espctl import render
    from espctl.services import doctor as service
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    rows = []
    for row in service.examine(project, fast):
        rows.append(row)
        if not project.settings.output.json:
            render.prose(f"{row.state:<4}  {row.name}: {row.found}")
            if row.remedy:
                render.prose(f"      {row.remedy}")
    if project.settings.output.json:
        render.emit_json(rows)
    if any(row.state == "fail" for row in rows):
        raise typer.Exit(1)
