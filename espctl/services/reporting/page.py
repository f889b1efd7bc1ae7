"""Gathering everything for the HTML report: tables, pictures, curves, and the runs behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import files
from esp.errors import EspError, InputError
from espctl import __version__, render
from espctl.report import layout, page, published, svg
from espctl.report.model import Row
from espctl.services.project import Project
from espctl.services.reporting import figures, report
from espctl.store import runs as store_runs
from espctl.store.records import RunDetail

PICTURES = 24  # of one data set; a page is no gallery
_POINTS = 120


def write(project: Project, query: report.Query, path: Path, bench: Path | None = None) -> tuple[Path, int]:
    """Write the page, and return its path and size in bytes.

    Args:
        bench: what Figure 7 is drawn from; None leaves it out.

    Raises:
        InputError: the file is not named like a page, or nothing has been scored.
        ArtifactError: the bench cannot be read.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} is not an HTML file", "give a name that ends in .html")
    charts = tuple(figures.inner_steps_charts(figures.inner_steps(bench))) if bench else ()
    text = page.build(replace(collect(project, query), charts=charts)).encode()
    files.write_bytes(path, text)
    return path, len(text)


def collect(project: Project, query: report.Query) -> page.Page:
    """Everything that the page shows."""
    query = replace(query, table="1", trace=True, cost=True, measures=True, best_known=True)
    rows = report.rows(project, query)
    tables = {"1": rows, **{table: _table(project, replace(query, table=table, measures=False)) for table in "234"}}
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    chapters = tuple(_chapter(project, name, tables) for name in datasets)
    runs = dict.fromkeys(run for found in tables.values() for row in found for run in row.runs)
    details = [store_runs.run_detail(project.store, run) for run in runs]
    moment = datetime.now(UTC).isoformat(sep=" ", timespec="minutes").removesuffix("+00:00")
    about = f"Runs: {len(runs)}. Data sets: {', '.join(datasets)}. espctl {__version__}, {moment} UTC."
    return page.Page(about, chapters, tuple(map(_facts, details)), _sources(datasets))


def _table(project: Project, query: report.Query) -> list[Row]:
    try:
        return report.rows(project, query)
    except InputError:  # nothing was scored that belongs into this table
        return []


def _chapter(project: Project, dataset: str, tables: dict[str, list[Row]]) -> page.Chapter:
    sections: list[page.Section] = []
    for table, everything in tables.items():
        rows = [row for row in everything if row.dataset == dataset]
        if rows and (table != "4" or len({row.method for row in rows}) > 1):
            best = table == "1"
            shown = [replace(r, cost=None, measures=None, best_known=r.best_known if best else ()) for r in rows]
            sections.append(page.Section(layout.main(table, shown), tuple(rows)))
    rows = [row for row in tables["1"] if row.dataset == dataset]
    if any(row.runs for row in rows):
        sections += [page.Section(layout.measures(rows), first=True), page.Section(layout.cost(rows), first=True)]
    if any(row.best_known for row in rows):
        sections.append(page.Section(layout.best_known(rows)))
    charts = (*_by_ipc(rows), *_by_option(project, dataset), *_by_epoch(project, rows), *_losses(project, rows))
    return page.Chapter(dataset, tuple(sections), tuple(_pictures(project, rows)), charts)


def _label(row: Row) -> str:
    return " ".join(filter(None, [row.method, row.stored, row.options]))


def _pictures(project: Project, rows: Sequence[Row]) -> Iterable[page.Picture]:
    """One picture for each synthetic set, of the first run of a row; none of a set whose file is gone."""
    first = {row.runs[0]: row for row in reversed(rows) if row.runs}
    for run, row in list(reversed(first.items()))[:PICTURES]:
        try:
            png, width, height, what = figures.thumbnail(project, run)
        except (EspError, OSError):
            continue
        yield page.Picture(run, f"{row.method}, {row.ipc} per class", f"{row.stored}. {what}", png, width, height)


def _by_ipc(rows: Sequence[Row]) -> list[svg.Chart]:
    """Accuracy against images per class, for each network and protocol, with the published curve dashed."""
    charts = []
    for network, protocol in dict.fromkeys((row.network, row.protocol) for row in rows):
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if (row.network, row.protocol) == (network, protocol) and row.mean is not None:
                lines.setdefault(_label(row), []).append(row)
        several = {name: found for name, found in lines.items() if len({row.ipc for row in found}) > 1}
        drawn: list[svg.Line] = []
        for colour, (name, found) in enumerate(several.items()):
            drawn.append(svg.Line(name, tuple((row.ipc, row.mean or 0.0) for row in found), colour=colour))
            known = tuple((row.ipc, row.published) for row in found if row.published is not None)
            drawn += [svg.Line(f"{found[0].method}, published", known, True, colour)] if len(known) > 1 else []
        if drawn:
            caption = f"{network}, {protocol}. Dashed: published, comparable only where the table says so."
            title = "Accuracy by images per class"
            charts.append(svg.Chart(title, "images per class", "accuracy", tuple(drawn), caption, logarithmic=True))
    return charts


def _by_option(project: Project, dataset: str) -> list[svg.Chart]:
    """Accuracy against every option in which runs differ alone (Figure 8)."""
    query = report.Query(dataset=dataset)
    chosen = [group for group in report.groups(project, query) if report.wanted(group, query)]
    names = dict.fromkeys(name for group in chosen for name in group.request["method_options"])
    settings = [figures.settings(chosen, name) for name in names]
    return [figures.by_option_chart(found) for found in settings if found]


def _by_epoch(project: Project, rows: Sequence[Row]) -> list[svg.Chart]:
    """Test accuracy while networks were trained on the sets, mean over networks."""
    charts = []
    for key in dict.fromkeys((row.ipc, row.network, row.protocol) for row in rows):
        lines: list[svg.Line] = []
        for row in rows:
            points = _curve(project, row) if (row.ipc, row.network, row.protocol) == key else ()
            if len(points) > 1:
                lines.append(svg.Line(_label(row), points, colour=len(lines)))
        for start in range(0, len(lines), len(svg.COLOURS)):
            part = tuple(lines[start : start + len(svg.COLOURS)])
            caption = f"{key[0]} per class, {key[1]}, {key[2]}; percent of the test set, mean over networks."
            charts.append(svg.Chart("Accuracy while training on the set", "epoch", "accuracy", part, caption))
    return charts


def _curve(project: Project, row: Row) -> tuple[tuple[float, float], ...]:
    found: dict[float, list[float]] = {}
    for one in row.evaluations:
        path = project.paths.runs / one.file.partition("/")[2] if one.file else None
        for epoch, accuracy in _points_of(path) if path and path.exists() else ():
            found.setdefault(epoch, []).append(100 * accuracy)
    return tuple((epoch, sum(values) / len(values)) for epoch, values in sorted(found.items()))


def _points_of(path: Path) -> Iterator[tuple[float, float]]:
    """(epoch, accuracy) of a score's file; nothing where the file, which may be anybody's, has no such pairs."""
    value = files.read_json(path)
    curve = value.get("curve") if isinstance(value, dict) else None
    for point in curve if isinstance(curve, list) else ():
        if isinstance(point, list) and len(point) == 2 and all(_is_plain(number) for number in point):
            yield point[0], point[1]


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e12


def _losses(project: Project, rows: Sequence[Row]) -> list[svg.Chart]:
    """The loss that each run lowered, or else the first of its metrics, over its steps."""
    charts = []
    for run in dict.fromkeys(row.runs[0] for row in rows if row.runs):
        found = store_runs.metrics_of(project.store, run)
        name = next((name for name in ("loss", *sorted(found)) if len(found.get(name, ())) > 1), None)
        if name:
            kept = found[name][:: -(-len(found[name]) // _POINTS)]
            line = svg.Line(name, tuple((float(step), value) for step, value in kept))
            charts.append(svg.Chart("While condensing", "step", name, (line,), run))
    return charts


def _facts(detail: RunDetail) -> page.Facts:
    run, body = detail.run, detail.request
    options: dict[str, Any] = body["request"].get("method_options", {})
    source = body.get("provenance", {})
    peak = None if run.peak_memory_bytes is None else f"{run.peak_memory_bytes / 1e6:.0f} MB"
    stored = f"{run.parametrisation}, {run.stored_numbers} of {run.budget_numbers} numbers"
    pairs = {
        "name": run.name,
        "note": run.note,
        "tags": ", ".join(detail.tags),
        "what": f"{run.method} on {run.dataset}, {run.ipc} per class, seed {run.seed}, preset {run.preset}",
        "network": run.network,
        "stored": stored,
        "options": " ".join(f"{name}={value}" for name, value in options.items()),
        "made": f"{render.text(run.created)}, {render.text(run.seconds)} s, peak {peak or '-'}, {run.device or '-'}",
        "program": f"espctl {run.version or '-'}, commit {run.git_commit or '-'}, torch {source.get('torch', '-')}",
        "folder": run.folder,
    }
    return page.Facts(run.id, tuple((name, str(value)) for name, value in pairs.items() if value))


def _sources(datasets: Sequence[str]) -> tuple[str, ...]:
    paper = [p.source for p in published.everything() if p.dataset in datasets]
    since = [
        f"{b.method}: {b.source}, {b.dataset} at {b.ipc} per class, {b.kind}, {b.labels} labels"
        f"{f'; {b.note}' if b.note else ''}"
        for b in published.best_known()
        if b.dataset in datasets
    ]
    return tuple(dict.fromkeys([*paper, *since])) or ("No number has been published for these data sets.",)
