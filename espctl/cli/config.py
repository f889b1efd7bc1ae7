"""`espctl config`: the settings in force."""

from __future__ import annotations

from typing import Annotated

import typer

from espctl.cli import options

app = typer.Typer()


@app.command()
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show every setting with its value."""
    from espctl import render
    from espctl.services import config

    found = config.show({"home": home, "output.json": json})
    if next(setting.value for setting in found if setting.key == "output.json"):
        with_origin = {setting.key: {"value": setting.value, "origin": setting.origin} for setting in found}
        render.emit_json(with_origin if origin else {setting.key: setting.value for setting in found})
    elif origin:
        rows = [(setting.key, config.toml(setting.value), render.path(setting.origin)) for setting in found]
        render.table(("setting", "value", "origin"), rows)
    else:
        render.record({setting.key: config.toml(setting.value) for setting in found})


@app.command()
def path(home: options.Home = None) -> None:
    """Print the path of the espctl.toml in force."""
    from espctl import render
    from espctl.services import config

    render.line(config.file({"home": home}))
