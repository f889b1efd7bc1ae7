"""`espctl report`: results beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from espctl.cli import options

app = typer.Typer()

Format = Annotated[
    str | None,
    typer.Option("--format", "-f", metavar="FORMAT", help="md, csv, json or latex in place of a screen table."),
]
NOTE = (
    "Accuracy in percent after the last epoch, mean ± standard deviation over n networks; best is the mean of the best "
    "checks, chosen on the test set. Published: {source}, Table 1."
)
MARK = " * not comparable: another network, protocol length or option than published."


@app.command()
def table1(
    dataset: options.DatasetOption,
    protocol: options.Protocol = None,
    network: options.Network = None,
    ipc: Annotated[int | None, typer.Option("--ipc", min=1, help="Only this budget.")] = None,
    format: Format = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Table 1: accuracy of each method, with the published value and the difference."""
    from esp.errors import UnknownNameError
    from espctl import render
    from espctl.report import formats
    from espctl.services import report
    from espctl.services.project import Project

    if format not in (None, "json", *formats.FORMATS):
        raise UnknownNameError("format", format or "", ["json", *formats.FORMATS])
    project = Project.open(options.output_flags(home, json))
    rows = report.table1(project, dataset, protocol, network, ipc)
    if format == "json" or (format is None and project.settings.output.json):
        render.emit_json(rows)
        return
    columns, cells, caption = _layout(dataset, rows)
    if format is None:
        render.table(columns, cells, f"Table 1, {dataset}")
        render.prose(caption)
    else:
        render.block(formats.FORMATS[format](columns, cells, caption))


def _layout(dataset: str, rows: list[Any]) -> tuple[list[str], list[list[str]], str]:
    """Headings, cells and caption; columns that say the same in every row go into the caption."""
    from espctl import render
    from espctl.report.published import SOURCE

    cells = [
        {
            "method": row.method,
            "stored": row.stored,
            "ipc": str(row.ipc),
            "network": row.network,
            "protocol": row.protocol,
            "accuracy": f"{row.mean:.1f} ± {row.sd:.1f}",
            "n": str(row.n),
            "published": _published(row),
            "diff": "-" if row.difference is None else f"{row.difference:+.1f}{'' if row.comparable else ' *'}",
            "best": f"{row.best:.1f}",
            "options": row.options or "-",
        }
        for row in rows
    ]
    movable = ("ipc", "network", "protocol")
    shared = {name: cells[0][name] for name in movable if len(rows) > 1 and len({cell[name] for cell in cells}) == 1}
    hidden = {*shared, *(["options"] if all(cell["options"] == "-" for cell in cells) else [])}
    columns = [name for name in cells[0] if name not in hidden]
    said = "".join(f" {render.clean(name)}: {value}." for name, value in {"Data set": dataset, **shared}.items())
    marked = any(row.difference is not None and not row.comparable for row in rows)
    caption = NOTE.format(source=SOURCE) + said + (MARK if marked else "")
    return columns, [[cell[name] for name in columns] for cell in cells], caption


def _published(row: Any) -> str:
    if row.published is None:
        return "-"
    return f"{row.published:.1f}" if row.published_sd is None else f"{row.published:.1f} ± {row.published_sd:.1f}"


@app.command()
def images(
    run: options.RunArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The PNG to write.")],
    home: options.Home = None,
) -> None:
    """Write a picture of a run's synthetic images, a row per class."""
    from espctl import render
    from espctl.services import report
    from espctl.services.project import Project

    render.line(report.images(Project.open({"home": home}), run, output))
