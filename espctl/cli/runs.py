"""`espctl runs`: what was made."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from espctl.cli import options

app = typer.Typer()


@app.command("ls")
def ls(
    filters: Annotated[
        list[str] | None, typer.Argument(metavar="[FILTER]...", help="For example method=esp 'ipc>=10' state!=failed.")
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", metavar="COLUMN", help="Column to sort by; -COLUMN turns it round.")
    ] = "-created",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    home: options.Home = None,
    json: options.Json = None,
) -> None:
    """List runs, the newest first, with their scores."""
    from espctl import render
    from espctl.services import runs
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json))
    found = runs.listing(project, filters or [], sort, limit)
    if project.settings.output.json:
        render.emit_json(found)
        return
    if not found:
        render.note(
            "there are no such runs" if filters else "there are no runs yet: espctl condense --dataset digits --ipc 1"
        )
        return
    scores = runs.scores(project, found)
    rows = []
    for run in found:
        score = (
            ", ".join(f"{render.percent(s.mean, s.sd)} ({s.n}, {s.protocol})" for s in scores.get(run.id, ())) or None
        )
        took = render.duration(run.seconds) if run.seconds is not None else None
        rows.append((run.id, run.state, f"{run.parametrisation} {run.network}", run.seed, took, score))
    render.table(("run", "state", "stored, network", "seed", "time", "accuracy % (n, protocol)"), rows)


@app.command()
def show(run: options.RunArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Show a run: request, provenance, cost, scores and curves."""
    from espctl import render
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
            "seconds": record.seconds,
            "peak memory": f"{record.peak_memory_bytes / 1e6:.0f} MB" if record.peak_memory_bytes else None,
            **runs.provenance(shown),
        }
    )
    for name, points in shown.metrics.items():
        render.line(f"{name:>10} {render.sparkline([value for _, value in points])} {render.text(points[-1][1])}")
    if shown.scores:
        rows = [
            (s.network, s.protocol, render.percent(s.mean, s.sd), s.n, render.percent(s.best_mean, s.best_sd))
            for s in shown.scores
        ]
        render.table(("network", "protocol", "accuracy %", "n", "best check %"), rows)
        render.prose("Accuracy is that after the last epoch; the best check was chosen on the test set.")


def _experts(entries: list[dict[str, str]]) -> list[str] | None:
    """How many experts of each store; there may be hundreds."""
    counts = Counter(entry["path"].rpartition("/")[0] for entry in entries)
    return [f"{count} of {store}" for store, count in counts.items()] or None
