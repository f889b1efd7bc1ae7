"""`espctl methods`: how a data set can be condensed."""

from __future__ import annotations

from typing import Annotated

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
    rows = [(m.name, m.paper, "experts" if m.needs_experts else "-", m.parametrisation) for m in found]
    render.table(("method", "paper", "needs", "stores by default"), rows)


@app.command()
def show(
    method: Annotated[str, typer.Argument(metavar="METHOD", autocompletion=options.complete_method)],
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show a method's options and their defaults; --set KEY=VALUE of `espctl condense` changes one."""
    from espctl import render, settings
    from espctl.services import methods

    found = methods.describe(method)
    if settings.load(options.output_flags(home, json)).settings.output.json:
        render.emit_json(found)
        return
    head = {"method": found.name, "paper": found.paper, "does": found.summary}
    needs = {"needs": "experts" if found.needs_experts else "-", "stores by default": found.parametrisation}
    render.record({**head, **needs, **{f"  {name}": value for name, value in found.options.items()}})
