"""`espctl verify`: files against their checksums."""

from __future__ import annotations

from typing import Annotated

import typer

from espctl.cli import options


def verify(
    runs: options.SomeRunsArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run, expert and data set.")] = False,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Compare runs with the checksums that they were made with, and their experts; exit 1 when something differs."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import verify as service
    from espctl.services.project import Project

    if bool(runs) == everything:
        raise UsageError("nothing to verify" if not runs else "RUN and --all exclude each other", "name runs, or --all")
    project = Project.open(options.output_flags(home, json, quiet))
    found = []
    parts = [service.everything(project)] if everything else [service.run(project, name) for name in runs or ()]
    total = service.total(project) if everything else len(parts)
    with render.Progress(total, "verify", project.settings.output.quiet) as progress:
        for part in parts:
            for one in part:
                found.append(one)
                progress.update(len(found), name=one.name)
    damaged = [one for one in found if one.problems]
    if project.settings.output.json:
        render.emit_json(found)
    else:
        for one in damaged:
            for problem in one.problems:
                render.line(f"{one.kind} {one.name}: {problem}")
        counts = {kind: sum(one.kind == kind for one in found) for kind in dict.fromkeys(one.kind for one in found)}
        said = ", ".join(render.count(number, kind) for kind, number in counts.items())
        files = render.count(sum(one.files for one in found), "file")
        render.line(f"{said or 'nothing to compare'}: {files}, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(1)
