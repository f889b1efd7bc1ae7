"""`espctl methods`: how a data set can be condensed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options

app = typer.Typer()


@app.command("ls")
def ls(home: options.Home = None, json: options.Json = None) -> None:
    """List the methods with their papers and what they need."""
    from espctl import render, settings
    from espctl.services import methods

    found = methods.listing()
    if settings.load(options.output_flags(home, json)).settings.output.json:
        render.emit_json(found)
        return
    rows = [(m.name, m.paper, _needs(m), m.parametrisation, " ".join(m.spaces), " ".join(m.presets)) for m in found]
    render.table(("method", "paper", "needs", "stores by default", "pixel space", "presets"), rows)


@app.command()
def show(
    method: Annotated[str, typer.Argument(metavar="METHOD", autocompletion=options.complete_method)],
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="NAME", help="paper or quick.", autocompletion=options.complete_preset),
    ] = "paper",
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", metavar="NAME", help="Data set.", autocompletion=options.complete_dataset),
    ] = None,
    ipc: Annotated[int | None, typer.Option("--ipc", help="Images per class.")] = None,
    network: options.Network = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show a method's options: their defaults, or with --dataset and --ipc what a preset makes of them there.

    --set KEY=VALUE of `espctl condense` changes one.
    """
    from espctl import render, settings
    from espctl.errors import UsageError
    from espctl.services import methods

    flags = {"condense.network": network, **options.output_flags(home, json)}
    chosen = settings.load(flags).settings
    found = methods.describe(method)
    if (dataset is None) != (ipc is None):
        raise UsageError("a preset is of a data set and a number of images", "give both --dataset and --ipc")
    cell = None
    if dataset is not None and ipc is not None:
        cell = methods.cell(method, preset, dataset, ipc, chosen.condense.network)
    elif preset != "paper":
        raise UsageError("a preset is of a data set and a number of images", "give both --dataset and --ipc")
    if chosen.output.json:
        render.emit_json(cell or found)
        return
    head = {"method": found.name, "paper": found.paper, "does": found.summary}
    needs = {"needs": _needs(found), "stores by default": found.parametrisation, **(_cell(cell) if cell else {})}
    values = cell.options if cell else found.options
    render.record({**head, **needs, **{f"  {name}": value for name, value in values.items()}})


def _needs(method: Any) -> str:
    """Experts, and the only way of storing that a method can use."""
    needs = [*(["experts"] if method.needs_experts else []), *([method.only] if method.only else [])]
    return ", ".join(needs) or "-"


def _cell(cell: Any) -> dict[str, Any]:
    """What is known of a cell beyond its options."""
    experts = f"{cell.experts[0]} of {cell.experts[1]} epochs" if cell.experts else None
    return {
        "preset": cell.preset,
        "for": f"{cell.dataset}, {cell.ipc} per class, {cell.network}",
        "pixel space": cell.space,
        "origin": f"{cell.origin}: {cell.note}",
        **({"experts": experts} if experts else {}),
        "set by preset": " ".join(cell.changed) or "-",
    }
