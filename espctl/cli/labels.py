"""`espctl runs tag`, `note` and `rename`: what people put on runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options


def tag(
    run: options.RunArgument,
    words: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="Words to put on it.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", metavar="TAG", help="A word to take off; may be repeated.")
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Put tags on a run, or take them off; without any, show them."""
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    _show(
        project, runs.tag(project, run, words or (), remove or ()) if words or remove else runs.note(project, run, None)
    )


def note(
    run: options.RunArgument,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The note; '' removes it.")] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Write a note on a run; without a text, show it."""
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    _show(project, runs.note(project, run, text))


def rename(
    run: options.RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What commands know it by, beside its id; '' for none.")],
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Give a run a name of its own; its id stays."""
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    _show(project, runs.rename(project, run, name))


def _show(project: Any, found: Any) -> None:
    from espctl import render

    if project.settings.output.json:
        render.emit_json(found)
    else:
        render.record({"run": found.run, "name": found.name, "tags": found.tags or None, "note": found.note})
