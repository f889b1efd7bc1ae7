"""`espctl db`: the database file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espctl.cli import options

app = typer.Typer()


@app.command()
def upgrade(home: options.Home = None, json: options.Json = None) -> None:
    """Create the database or bring it to the newest schema, and enter the runs that it lacks from their folders."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    done = db.upgrade(project)
    for folder, reason in done.runs.unreadable:
        render.note(f"not read: {folder}: {reason}")
    if project.settings.output.json:
        render.emit_json(done)
        return
    if done.backup:
        render.line(f"the database as it was: {render.path(done.backup)}")
    was = "already " if done.before == done.after else "now "
    render.line(f"{done.database} {was}has schema {done.after}")
    if done.runs.added or done.runs.updated:
        added = render.count(len(done.runs.added), "run")
        render.line(f"from the run folders: {added} added, {len(done.runs.updated)} updated")


@app.command()
def rebuild(home: options.Home = None, json: options.Json = None) -> None:
    """Make the database anew from the folders of runs, experts and studies; a damaged one is kept beside it."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    done = db.rebuild(project)
    for folder, reason in done.runs.unreadable:
        render.note(f"not read: {folder}: {reason}")
    if project.settings.output.json:
        render.emit_json(done)
        return
    if done.replaced:
        render.line(f"the database as it was: {render.path(done.replaced)}")
    counts = [
        render.count(len(done.runs.added), "run"),
        render.count(done.experts, "expert"),
        render.count(done.datasets, "data set"),
        render.count(done.studies, "study", "studies"),
    ]
    render.line(f"{done.database} was made from the folders: {', '.join(counts)}")


@app.command()
def backup(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The copy; by default beside the database, with the time.")
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Copy the database into a new file, also while other processes write."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    made = db.backup(project, file)
    if project.settings.output.json:
        render.emit_json({"backup": made, "bytes": made.stat().st_size})
    else:
        render.line(render.path(made))


@app.command()
def current(home: options.Home = None, json: options.Json = None) -> None:
    """Show the schema of the database and the one this program needs."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    found = db.current(project)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        needs = "newest" if found.revision == found.head else f"this program needs {found.head}"
        render.record({"database": found.database, "schema": f"{found.revision or 'none'} ({needs})"})


@app.command()
def check(home: options.Home = None, json: options.Json = None) -> None:
    """Look for damage, dangling rows, and a schema that is not this program's; exit 1 when there is any."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    found = db.check(project)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        schema = found.revision or "none"
        render.record({"database": found.database, "schema": schema, "problems": len(found.problems) or "none"})
        for problem in found.problems:
            render.line(f"- {problem}")
    if found.problems:
        raise typer.Exit(1)
