"""`espctl runs export`, `import` and `sync`: runs between folders, machines and the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espctl.cli import options

Filter = Annotated[
    str | None, typer.Option("--filter", metavar="FILTER", help="Runs that pass a filter, as of espctl runs ls.")
]


def export(
    runs: options.SomeRunsArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="The bundle: a folder, or NAME.tar, .tar.gz or .tgz."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="PATH", help="Write accuracies alone: FILE.json, or a folder for it."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run that has ended.")] = False,
    filter: Filter = None,
    with_experts: Annotated[bool, typer.Option("--with-experts", help="Also the experts' own files.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Write runs as a bundle that another machine can check and import, or their accuracies as one small file."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import bundles
    from espctl.services.project import Project
    from espctl.services.reporting import results as service

    if sum((bool(runs), everything, filter is not None)) != 1:
        raise UsageError("which runs is not said", "name runs, or give one of --all and --filter")
    if (output is None) == (results is None):
        raise UsageError("where to is not said", "give one of --output PATH and --results PATH")
    project = Project.open(options.output_flags(home, json))
    if results is not None:
        written = service.write(project, runs or (), filter or "", results)
        if project.settings.output.json:
            render.emit_json(written)
        else:
            of = render.count(len(written.runs), "run")
            render.line(f"{render.path(written.path)}: {render.count(written.rows, 'result')} of {of}")
        return
    assert output is not None
    made = bundles.export(project, runs or (), filter or "", output, with_experts)
    if project.settings.output.json:
        render.emit_json(made)
        return
    for run in made.left_out:
        render.note(f"left out, it has not ended: {run}")
    render.line(f"{render.path(made.path)}: {_held(len(made.runs), made.files, made.bytes)}")


def take_in(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder or tar file that runs export wrote.")],
    check: Annotated[bool, typer.Option("--check", help="Check it, and import nothing.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Import a bundle; all of it is checked first, and none of it is taken when anything is wrong."""
    from espctl import render
    from espctl.services import bundles
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    if check:
        manifest = bundles.check(bundle)
        facts = {"source": bundle, "runs": manifest.runs, "files": len(manifest.files), "bytes": manifest.bytes}
        if project.settings.output.json:
            render.emit_json({**facts, "schema": manifest.schema, "program": manifest.program})
        else:
            render.line(f"sound: {_held(len(manifest.runs), len(manifest.files), manifest.bytes)}")
            for run in manifest.runs:
                render.line(f"- {run}")
        return
    done = bundles.take_in(project, bundle)
    if project.settings.output.json:
        render.emit_json(done)
        return
    for run in done.added:
        render.line(f"imported {run}")
    for run in done.known:
        render.line(f"here already, the same: {run}")
    if done.experts:
        render.line(f"{render.count(len(done.experts), 'file')} of experts")


def sync(home: options.Home = None, json: options.Json = None) -> None:
    """Make the database agree with the run folders; a lost or damaged database is rebuilt from them."""
    from espctl import render
    from espctl.services import db
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    done = db.sync(project)
    if project.settings.output.json:
        render.emit_json(done)
        return
    for folder, reason in done.unreadable:
        render.note(f"not read: {folder}: {reason}")
    for run in done.missing:
        render.note(f"its folder is gone: {run}; espctl runs rm {run} removes it from the database")
    added = render.count(len(done.added), "run")
    render.line(f"{added} added, {len(done.updated)} updated, {len(done.unchanged)} unchanged")


def _held(runs: int, files: int, size: int) -> str:
    from espctl import render

    return f"{render.count(runs, 'run')}, {render.count(files, 'file')}, {size / 1e6:.1f} MB"
