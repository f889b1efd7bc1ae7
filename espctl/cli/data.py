"""`espctl data`: the real data sets."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esp.spaces import NORMALISED
from espctl.cli import options

if TYPE_CHECKING:
    from espctl.services.data import Checked, Info, Listed

app = typer.Typer()


@app.command("ls")
def list_(home: options.Home = None, json: options.Json = None) -> None:
    """List the data sets by name, and what is known of those that were converted."""
    from espctl import render
    from espctl.services import data
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    found = data.listing(project)
    if project.settings.output.json:
        render.emit_json(found)
        return
    rows = [
        (row.name, _state(row), row.train, row.test, _shape(row.shape), row.classes, _size(row.bytes)) for row in found
    ]
    render.table(("name", "state", "train", "test", "image", "classes", "file"), rows)


@app.command()
def fetch(
    dataset: options.DatasetArgument,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="FOLDER", help="Where the official files lie, or are put.")
    ] = None,
    download: Annotated[bool, typer.Option("--download/--no-download", help="Use the network if need be.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Convert even if it was converted already.")] = False,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Download a data set if need be, check it, and convert it for fast loading."""
    from espctl import render
    from espctl.services import data
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json, "output.quiet": quiet})
    # The loaders draw their own progress bar while they download.
    silence = contextlib.redirect_stderr(io.StringIO()) if project.settings.output.quiet else contextlib.nullcontext()
    with silence:
        found = data.fetch(project, dataset, source, download, again)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        _print_info(found)


@app.command()
def info(dataset: options.DatasetArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Describe a data set: sizes, classes, normalisation, fingerprint."""
    from espctl import render
    from espctl.services import data
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    found = data.info(project, dataset)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        _print_info(found)


@app.command()
def check(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET]...",
            help="Names of data sets; all that were converted when none is given.",
            autocompletion=options.complete_dataset,
            show_default=False,
        ),
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Verify every byte of converted data sets and look for oddities; exit 1 when one is damaged."""
    from espctl import render
    from espctl.services import data
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    found = data.check(project, datasets or [])
    if project.settings.output.json:
        render.emit_json(found)
    elif found:
        render.table(("name", "verdict"), [(row.name, _verdict(row)) for row in found])
    else:
        render.note("no data set was converted yet; run: espctl data fetch digits")
    if any(row.problem for row in found):
        raise typer.Exit(1)


@app.command()
def show(
    dataset: options.DatasetArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The PNG file; NAME.png if not given.")
    ] = None,
    per_class: Annotated[int, typer.Option("--per-class", min=1, max=100, help="Images in a row.")] = 8,
    test: Annotated[bool, typer.Option("--test", help="Show test images.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", "-s", min=0, help="Choose images at random.")] = None,
    space: options.Space = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Write a picture of a data set, one row for each class."""
    from espctl import render
    from espctl.services import data
    from espctl.services.project import Project

    project = Project.open({"home": home, "output.json": json})
    made = data.show(project, dataset, output, per_class, test, seed, space or NORMALISED)
    if project.settings.output.json:
        render.emit_json(made)
    else:
        render.line(f"{made.path}: {render.count(made.images, 'image')}, {made.width}x{made.height} pixels")


def _print_info(found: Info) -> None:
    from espctl import render

    low, high = found.train_per_class
    render.record(
        {
            "name": found.name,
            "training images": f"{found.train} ({low if low == high else f'{low} to {high}'} per class)",
            "test images": found.test,
            "image": _shape(found.shape),
            "classes": f"{len(found.classes)}: {', '.join(found.classes)}",
            "mean": found.mean,
            "deviation": f"{', '.join(f'{value:.4g}' for value in found.std)} ({found.statistics})",
            "flips keep labels": found.flips,
            "fingerprint": found.fingerprint,
            "file": f"{render.path(found.path)} ({_size(found.bytes)})",
        }
    )


def _state(row: Listed) -> str:
    if row.damage:
        return "damaged"
    if row.converted:
        return "ready"
    return "built in" if row.name == "digits" else "not fetched"


def _verdict(row: Checked) -> str:
    return f"damaged: {row.problem}" if row.problem else "; ".join(["sound", *row.oddities])


def _shape(shape: tuple[int, ...] | None) -> str | None:
    return "x".join(map(str, shape)) if shape else None


def _size(count: int | None) -> str | None:
    return f"{count / 1e6:.1f} MB" if count is not None else None
