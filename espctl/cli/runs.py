"""`espctl runs`: what was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from espctl.cli import bundles, cleanup, labels, options, watch

app = typer.Typer()

FILTERS = "Conditions, for example: method=esp 'ipc>=10' 'accuracy>40 or tag=keep' 'options.beta<1e-4'."

SCREENFUL = 100
"""Rows of a plain table when no limit is given: nobody reads more, and a hundred thousand take seconds to print."""


@app.command("ls")
def ls(
    filters: Annotated[list[str] | None, typer.Argument(metavar="[FILTER]...", help=FILTERS)] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="COLUMN", help="A column, accuracy or options.NAME; -COLUMN turns it round."),
    ] = "-created",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="At most so many, 0 for all; a plain table stops at 100 unless told."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="NAMES", help="What to show: id,state,options.beta,accuracy,tags."),
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Show only what differs between the runs.")] = False,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="NAMES", help="One line for runs that differ in these alone, such as seed."),
    ] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """List runs, the newest first, with their scores: mean ± standard deviation over n networks."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import listing
    from espctl.services.project import Project

    if sum((columns is not None, changed, group is not None)) > 1:
        raise UsageError("--columns, --changed and --group exclude each other", "give one of them")
    project = Project.open(options.output_flags(home, json))
    typed = " ".join(filters or ())
    plain = not (columns or changed or group or project.settings.output.json)
    limit = SCREENFUL if plain and limit is None else limit or None
    found = listing.listing(project, typed, sort, limit)
    groups = listing.groups(project, found, _names(group)) if group is not None else None
    shown = listing.changed(found) if changed else listing.check_columns(project, _names(columns)) if columns else None
    if project.settings.output.json:
        render.emit_json(groups if groups is not None else [_plain(one, shown, changed) for one in found])
    elif not found:
        render.note(
            "there are no such runs" if filters else "there are no runs yet: espctl condense --dataset digits --ipc 1"
        )
    elif groups is not None:
        _print_groups(groups)
    elif shown is not None:
        names = ["id", *shown, "accuracy"] if changed else shown
        render.table([_heading(name) for name in names], [[_cell(one, name) for name in names] for one in found])
    else:
        _print_runs(found)
        if plain and len(found) == SCREENFUL and (left := listing.count(project, typed) - SCREENFUL):
            render.note(f"{left:,} more: --limit 0 shows all, a filter finds some")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _plain(one: Any, shown: Sequence[str] | None, changed: bool) -> dict[str, Any]:
    """A run as JSON: all of it, or what was asked for."""
    if shown is None:
        found: dict[str, Any] = one.plain()
        return found
    return {name: one.value(name) for name in (["id", *shown, "accuracy"] if changed else shown)}


def _heading(name: str) -> str:
    return {"accuracy": "accuracy %", "options": name}.get(name, name.removeprefix("options."))


def _cell(one: Any, column: str) -> Any:
    """What stands in a column of the table."""
    from espctl import render

    value = one.value(column)
    if column == "accuracy":
        return _scores(value, one)
    if column == "seconds" and value is not None:
        return render.duration(value)
    return (", ".join(value) or None) if column == "tags" else value


def _scores(scores: Sequence[Any], one: Any) -> str | None:
    """Every score of a run, its protocol and n; the network as well where it is not the run's own."""
    from espctl import render

    parts = []
    for score in scores:
        where = score.protocol if score.network == one.run.network else f"{score.protocol}, {score.network}"
        parts.append(f"{render.percent(score.mean, score.sd)} ({score.n}, {where})")
    return ", ".join(parts) or None


def _print_runs(found: Sequence[Any]) -> None:
    from espctl import render

    labelled = [name for name in ("name", "tags") if any(one.value(name) for one in found)]
    rows = []
    for one in found:
        run = one.run
        took = render.duration(run.seconds) if run.seconds is not None else None
        labels = [_cell(one, name) for name in labelled]
        rows.append(
            (run.id, *labels, run.state, f"{run.parametrisation} {run.network}", run.seed, took, _cell(one, "accuracy"))
        )
    render.table(("run", *labelled, "state", "stored, network", "seed", "time", "accuracy % (n, protocol)"), rows)


def _print_groups(groups: Sequence[Any]) -> None:
    """One line for each group: what it is, what sets it apart, and its score."""
    from espctl import render

    plain = ("method", "dataset", "ipc", "parametrisation", "network")
    told = [name for name in groups[0].facts if name not in plain]
    varied = [name for name in plain if len({getattr(group, name) for group in groups}) > 1 or name == "method"]
    rows = []
    for group in groups:
        score = None if group.mean is None else f"{render.percent(group.mean, group.sd)} ({group.n})"
        where = None if group.protocol is None else group.protocol
        if group.evaluated not in (None, group.network):
            where = f"{where}, {group.evaluated}"
        facts = [group.facts.get(name) for name in told]
        rows.append([*(getattr(group, name) for name in varied), *facts, len(group.runs), where, score])
    render.table([*varied, *map(_heading, told), "runs", "protocol", "accuracy % (n)"], rows)


@app.command()
def diff(
    a: options.RunArgument,
    b: options.RunArgument,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """Show where two runs differ: request, provenance, cost and scores."""
    from espctl import render
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = runs.diff(project, a, b)
    if project.settings.output.json:
        render.emit_json(found)
    elif not found.differences:
        render.line(f"{found.a} and {found.b} do not differ")
    else:
        rows = [(_heading(one.name), _said(one, one.a), _said(one, one.b)) for one in found.differences]
        render.table(("", found.a, found.b), rows)


def _said(one: Any, value: Any) -> Any:
    from espctl import render

    if one.part == "score" and value is not None:
        return f"{render.percent(value['mean'], value['sd'])} ({value['n']})"
    return value


@app.command()
def show(run: options.RunArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Show a run: request, provenance, cost, scores and curves."""
    from espctl import curves, render
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    shown = runs.show(project, run)
    if project.settings.output.json:
        render.emit_json(shown)
        return
    record, request = shown.detail.run, shown.detail.request["request"]
    render.record(
        {
            "run": record.id,
            "name": record.name,
            "tags": shown.detail.tags or None,
            "note": record.note,
            "state": record.state if not record.error else f"{record.state}: {record.error}",
            "created": record.created,
            "folder": render.path(project.home / record.folder),
            **{
                name: value
                for name, value in request.items()
                if name not in ("method_options", "parametrisation_options", "experts")
            },
            **{f"  {name}": value for name, value in request["method_options"].items()},
            **{f"  {name}": value for name, value in request["parametrisation_options"].items()},
            "experts": _experts(request["experts"]),
            "stored numbers": f"{record.stored_numbers} of {record.budget_numbers}" if record.stored_numbers else None,
            "stored bytes": _stored_bytes(shown.detail.outcome or {}),
            **_made_from(shown.detail.request),
            "seconds": record.seconds,
            "peak memory": f"{record.peak_memory_bytes / 1e6:.0f} MB" if record.peak_memory_bytes else None,
            **runs.provenance(shown),
        }
    )
    for name, points in shown.metrics.items():
        render.line(f"{name:>10} {curves.sparkline([value for _, value in points])} {render.text(points[-1][1])}")
    if shown.scores:
        rows = [
            (s.network, s.protocol, render.percent(s.mean, s.sd), s.n, render.percent(s.best_mean, s.best_sd))
            for s in shown.scores
        ]
        render.table(("network", "protocol", "accuracy %", "n", "best check %"), rows)
        render.prose("Accuracy is that after the last epoch; the best check was chosen on the test set.")


def _stored_bytes(outcome: Mapping[str, Any]) -> str | None:
    """Bytes of the numbers, and for a compressed run how they came to be so few."""
    if outcome.get("stored_bytes") is None:
        return None
    found = f"{outcome['stored_bytes']:,}"
    if how := outcome.get("compression"):
        found += f" of {how['original_bytes']:,}: codes {how['coded_bytes']:,} by {how['coder']}"
        found += f" (entropy {how['entropy_bytes']:,}), scales {how['scale_bytes']:,}"
    return found


def _made_from(request: Mapping[str, Any]) -> dict[str, str]:
    """The run that a compressed run was made from."""
    return (
        {"made from": f"{request['source']['run']} ({request['source']['sha256'][:12]})"} if "source" in request else {}
    )


def _experts(entries: list[dict[str, str]]) -> list[str] | None:
    """How many experts of each store; there may be hundreds."""
    counts = Counter(entry["path"].rpartition("/")[0] for entry in entries)
    return [f"{count} of {store}" for store, count in counts.items()] or None


app.command("tag")(labels.tag)
app.command("note")(labels.note)
app.command("rename")(labels.rename)
app.command("watch")(watch.watch)
app.command("rm")(cleanup.rm)
app.command("restore")(cleanup.restore)
app.command("gc")(cleanup.gc)
app.command("export")(bundles.export)
app.command("import")(bundles.take_in)
app.command("sync")(bundles.sync)
