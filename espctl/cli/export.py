"""`espctl export`: a synthetic set as files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espctl.cli import options


def complete_format(incomplete: str) -> list[str]:
    """Names of formats."""
    names = ("huggingface", "imagefolder", "npz", "safetensors")
    return [name for name in names if name.startswith(incomplete)]


def export(
    run: options.RunArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            "-t",
            metavar="FORMAT",
            help="safetensors, imagefolder, npz, or huggingface.",
            autocompletion=complete_format,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where to; default: named after the run, here."),
    ] = None,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="Put the real test images beside it, so that espctl can load it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Write a run's synthetic set as plain images and labels.

    The numbers that a network was scored on are kept in safetensors and npz; PNG files hold them rounded and clamped.
    """
    from espctl import render
    from espctl.services.exporting import export as service
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = service.export(project, run, to, out, force, with_test)
    if project.settings.output.json:
        render.emit_json(found)
        return
    channels, height, width = found.shape
    facts: dict[str, object] = {
        "run": found.run,
        "written": render.path(found.path),
        "images": f"{found.images}, {channels} x {height} x {width}, {found.classes} classes",
        "size": f"{found.bytes / 1e6:.2f} MB",
        "clamped": f"{found.clamped:.2%} of the numbers, which no pixel can hold",
    }
    if found.test_images:
        facts["test images"] = found.test_images
    render.record(facts)
