"""`espctl report`: results beside the published ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espctl.cli import options

if TYPE_CHECKING:
    from espctl.services.project import Project

app = typer.Typer()

AnyDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME",
        help="Only this data set.",
        autocompletion=options.complete_dataset,
    ),
]
Ipc = Annotated[int | None, typer.Option("--ipc", min=1, help="Only this budget.")]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", metavar="NAME", help="Only this method.", autocompletion=options.complete_method),
]
AllRuns = Annotated[bool, typer.Option("--all-runs", help="A row for each run, not one for all seeds.")]
Published = Annotated[bool, typer.Option("--published", help="Add published values without a run.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="Only runs of this preset.")]
Format = Annotated[
    str | None,
    typer.Option("--format", "-f", metavar="FORMAT", help="md, csv, json or latex in place of a screen table."),
]
FigureFormat = Annotated[
    str | None, typer.Option("--format", "-f", metavar="FORMAT", help="md, csv or json of the numbers that are drawn.")
]
FigureOutput = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="The PNG to write; without it, numbers only.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]


def _table(number: str) -> Callable[..., None]:
    """The command of one table; all have the same options."""

    def command(
        dataset: AnyDataset = None,
        protocol: options.Protocol = None,
        network: options.Network = None,
        ipc: Ipc = None,
        method: Method = None,
        preset: Preset = None,
        all_runs: AllRuns = False,
        published: Published = False,
        trace: Annotated[bool, typer.Option("--trace", help="Name the runs and files behind every number.")] = False,
        cost: Annotated[bool, typer.Option("--cost", help="Add seconds and peak memory.")] = False,
        measures: Annotated[bool, typer.Option("--measures", help="Add HLR, IOR, LRS and ARS.")] = False,
        best_known: Annotated[bool, typer.Option("--best-known", help="Add the best published since.")] = False,
        format: Format = None,
        home: options.Home = None,
        json: options.Json = None,
    ) -> None:
        from esp.errors import UnknownNameError
        from espctl import render
        from espctl.report import formats, layout
        from espctl.services.project import Project
        from espctl.services.reporting import report

        if format not in (None, "json", *formats.FORMATS):
            raise UnknownNameError("format", format or "", ["json", *formats.FORMATS])
        project = Project.open(options.output_flags(home, json))
        query = report.Query(
            number, dataset, protocol, network, ipc, method, preset, all_runs, published, trace, cost, measures,
            best_known,
        )  # fmt: skip
        rows = report.rows(project, query)
        if format == "json" or (format is None and project.settings.output.json):
            render.emit_json(rows)
            return
        grids = layout.grids(number, rows, trace, all_runs)
        if format is not None:
            render.block(formats.text_of(format, grids, rows))
            return
        for grid in grids:
            render.table(grid.columns, grid.cells, grid.title)
            render.prose(grid.caption)

    return command


for _number, _help in (
    ("1", "Table 1: accuracy of each method, with the published value and the difference."),
    ("2", "Table 2: the same sets on ResNet-10 and DenseNet-121."),
    ("3", "Table 3: the same sets on EfficientNetV2-S."),
    ("4", "Table 4: ESP with one of its losses, and with both."),
):
    app.command(f"table{_number}", help=_help)(_table(_number))


@app.command()
def images(run: options.RunArgument, output: Output, home: options.Home = None) -> None:
    """Write a picture of a run's synthetic images, a row per class."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.reporting import figures

    render.line(figures.images(Project.open({"home": home}), run, output))


@app.command()
def html(
    output: Output,
    dataset: AnyDataset = None,
    protocol: options.Protocol = None,
    network: options.Network = None,
    ipc: Ipc = None,
    method: Method = None,
    preset: Preset = None,
    all_runs: AllRuns = False,
    published: Published = False,
    bench: Annotated[
        Path | None, typer.Option("--bench", metavar="FILE", help="Draw memory and time against inner steps from it.")
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Write everything as one HTML page: tables that sort, images, curves, cost, and the runs behind every number."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.reporting import page, report

    project = Project.open(options.output_flags(home, json))
    query = report.Query("1", dataset, protocol, network, ipc, method, preset, all_runs, published)
    path, size = page.write(project, query, output, bench)
    if project.settings.output.json:
        render.emit_json({"path": path, "bytes": size})
    else:
        render.line(f"{render.path(path)}  {size / 1e6:.1f} MB")


def _pictured(number: str) -> Callable[..., None]:
    """The command of one of the figures of synthetic images; they differ in their data set alone."""

    def command(
        dataset: AnyDataset = None,
        ipc: Ipc = None,
        method: Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="The method to draw.")] = "esp",
        output: FigureOutput = None,
        format: FigureFormat = None,
        home: options.Home = None,
        json: options.Json = None,
    ) -> None:
        from espctl.services.project import Project
        from espctl.services.reporting import figures

        project = Project.open(options.output_flags(home, json))
        found = figures.best(project, dataset or figures.DATASETS[number], method, ipc)
        if output:
            figures.images(project, found.run, output)
        _numbers(project, [found], format, output, f"Figure {number}: the best synthetic set")

    return command


for _number, _name in (("3", "SVHN"), ("4", "CIFAR-10"), ("5", "CIFAR-100"), ("6", "Tiny ImageNet")):
    app.command(f"figure{_number}", help=f"Figure {_number}: the best synthetic set of {_name}.")(_pictured(_number))


@app.command()
def figure7(
    bench: Annotated[
        Path | None, typer.Option("--bench", metavar="FILE", help="A bench; else the newest under results.")
    ] = None,
    output: FigureOutput = None,
    format: FigureFormat = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Figure 7: memory and time against inner steps, ESP and MTT."""
    from espctl.services.project import Project
    from espctl.services.reporting import figures

    project = Project.open(options.output_flags(home, json))
    found = figures.inner_steps(bench)
    if output:
        figures.draw(output, figures.inner_steps_charts(found))
    about = f" ({found.about})" if found.about else ""
    _numbers(project, list(found.points), format, output, f"Figure 7: one update after inner steps{about}")


@app.command()
def figure8(
    option: Annotated[
        str | None, typer.Option("--option", metavar="NAME", help="The option; else the one with the most points.")
    ] = None,
    dataset: AnyDataset = None,
    protocol: options.Protocol = None,
    network: options.Network = None,
    ipc: Ipc = None,
    method: Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="The method.")] = "esp",
    output: FigureOutput = None,
    format: FigureFormat = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Figure 8: accuracy against one option, over runs that differ in nothing else but their seed."""
    from espctl.services.project import Project
    from espctl.services.reporting import figures, report

    project = Project.open(options.output_flags(home, json))
    query = report.checked(report.Query("1", dataset, protocol, network, ipc, method))
    found = figures.by_option(project, query, option)
    if output:
        figures.draw(output, [figures.by_option_chart(found)])
    _numbers(project, found, format, output, f"Figure 8: accuracy by {found[0].option}")


def _numbers(project: Project, found: Sequence[Any], format: str | None, output: Path | None, title: str) -> None:
    """Print what a figure draws, and where it was drawn."""
    from dataclasses import asdict

    from esp.errors import UnknownNameError
    from espctl import render
    from espctl.report import formats

    if format not in (None, "json", "csv", "md"):
        raise UnknownNameError("format", format or "", ["csv", "json", "md"])
    if format == "json" or (format is None and project.settings.output.json):
        render.emit_json(found)
        return
    lines = [asdict(item) for item in found]
    columns = [name.replace("_", " ") for name in lines[0]]
    if format is None:
        render.table(columns, [list(line.values()) for line in lines], title)
        if output:
            render.line(render.path(output))
        return
    cells = [["" if v is None else " ".join(v) if isinstance(v, tuple) else str(v) for v in x.values()] for x in lines]
    render.block(formats.FORMATS[format](list(lines[0]), cells, title))
