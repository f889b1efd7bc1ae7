"""`espctl networks`: what can be trained, matched and tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from espctl.cli import options

if TYPE_CHECKING:
    from espctl.services.networks import NetworkInfo

app = typer.Typer()

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME",
        help="For the images of this data set; else 3x32x32 in 10 classes.",
        autocompletion=options.complete_dataset,
    ),
]


@app.command("ls")
def ls(dataset: Dataset = None, home: options.Home = None, json: options.Json = None) -> None:
    """List the networks and their sizes."""
    from espctl import render
    from espctl.services import networks
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = networks.listing(project, dataset)
    if project.settings.output.json:
        render.emit_json(found)
        return
    rows = [(n.spec, n.parameters, n.features, _flops(n), _options(n)) for n in found]
    render.table(("network", "parameters", "features", "MFLOP", "options"), rows, _images(found[0]))
    for network in found:
        if network.problem:
            render.prose(f"{network.spec}: {network.problem}.")


@app.command()
def show(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="NAME or NAME,option=value,... as --network takes it.",
            autocompletion=options.complete_network,
        ),
    ],
    dataset: Dataset = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show a network: its size for the images of a data set, and its options."""
    from espctl import render
    from espctl.services import networks
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = networks.describe(project, network, dataset)
    if project.settings.output.json:
        render.emit_json(found)
        return
    sizes = {
        "network": found.spec,
        "is": found.summary,
        "images": _images(found),
        "parameters": found.parameters,
        "batch statistics": found.statistics or None,
        "features": found.features,
        "MFLOP per image": _flops(found),
        "levels": found.levels,
    }
    render.record({**sizes, **{f"  {name}": value for name, value in found.options.items()}})


def _images(network: NetworkInfo) -> str:
    size = "x".join(map(str, network.shape))
    return f"{network.dataset or 'images of'} {size}, {network.classes} classes"


def _flops(network: NetworkInfo) -> int | None:
    """Millions of operations of a forward pass over one image."""
    return None if network.flops is None else round(network.flops / 1e6)


def _options(network: NetworkInfo) -> str:
    return " ".join(f"{name}={value}" for name, value in network.options.items())
