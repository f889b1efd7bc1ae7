"""`espctl protocols`: how a synthetic set can be scored."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options

app = typer.Typer()


@app.command("ls")
def ls(home: options.Home = None, json: options.Json = None) -> None:
    """List the protocols: the built-in ones and those of espctl.toml.

    One's own is a table [protocols.NAME] there, or a file given to --protocol: base = "dsa", and what shall differ.
    """
    from espctl import render
    from espctl.services import protocols
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = protocols.listing(project)
    if project.settings.output.json:
        render.emit_json(found)
        return
    rows = [(p.name, _length(p), p.value("batch"), _rate(p), p.value("loss"), p.source) for p in found]
    render.table(("protocol", "length", "batch", "lr", "loss", "from"), rows)


@app.command()
def show(
    protocol: Annotated[
        str,
        typer.Argument(
            metavar="PROTOCOL",
            help="A name, NAME@EPOCHS, NAME+held-out, or a file that ends in .toml.",
            autocompletion=options.complete_protocol,
        ),
    ],
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show every value of a protocol and where it comes from."""
    from espctl import render
    from espctl.services import protocols
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = protocols.describe(project, protocol)
    if project.settings.output.json:
        render.emit_json(found)
        return
    render.record({"protocol": found.name, "from": found.source, "hash": found.hash})
    render.line("")
    rows = [(field.key, _written(field.value), field.origin, field.meaning) for field in found.fields]
    render.table(("key", "value", "from", "meaning"), rows)


def _length(found: Any) -> str:
    steps = found.value("steps")
    return f"{steps} steps" if steps else f"{found.value('epochs')} epochs"


def _rate(found: Any) -> str:
    """The learning rate as it is written in a file."""
    rate, of = found.value("lr"), found.value("lr_of")
    if of == "number":
        return f"{rate:g}"
    return str(of) if rate == 1 else f"{rate:g} x {of}"


def _written(value: Any) -> str:
    """A value as TOML writes it, near enough to read."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "-"
