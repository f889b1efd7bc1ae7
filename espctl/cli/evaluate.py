"""`espctl evaluate`: score a synthetic set by training fresh networks on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options, outcome

Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Networks to train, seeds 0, 1, ...")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Cut the protocol; its name then says so.")]
Select = Annotated[
    str | None, typer.Option("--select", metavar="HOW", help="last, or held-out: choose on training images.")
]
Rates = Annotated[list[float] | None, typer.Option("--lr", help="Learning rates to choose among; may be repeated.")]
Baseline = Annotated[
    bool, typer.Option("--baseline/--no-baseline", help="Score random selection and herding of equal size too.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="Processes that train networks; 0 for what is faster.")]


def evaluate(
    run: options.RunArgument,
    protocol: options.Protocol = None,
    network: options.Network = None,
    seeds: Seeds = None,
    epochs: Epochs = None,
    select: Select = None,
    lr: Rates = None,
    baseline: Baseline = True,
    jobs: Jobs = 0,
    stack: options.Stack = None,
    device: options.Device = None,
    threads: options.Threads = None,
    compile: options.Compile = None,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Train fresh networks on a run's synthetic set and test them on real images.

    The score is the accuracy after the last epoch. The best check, a maximum over the test set, is shown beside it.
    With --select held-out the epoch is chosen on held-out training images, and the test set is looked at once.
    """
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import evaluate as service
    from espctl.services.project import Project

    flags = {
        "evaluate.protocol": protocol,
        "evaluate.network": network,
        "evaluate.seeds": seeds,
        "compute.stack": stack,
        **options.compute_flags(device, threads, compile),
        **options.output_flags(home, json, quiet),
    }
    if select not in (None, "last", "held-out"):
        raise UsageError(f"--select {select!r} is no way to choose", "give last, or held-out")
    project = Project.open(flags)
    ask = service.Ask(epochs, select or "", tuple(lr or ()), network)
    runs, items = service.prepare(project, run, jobs, baseline, ask)
    output = project.settings.output
    if baseline and len(runs) == 1 and not runs[0].startswith("random-"):
        render.note("no baseline: a random selection has no learned learning rate", output.quiet or output.json)
    _train(project, service, runs[0], items, jobs)
    found = service.scored(project, runs, ask)
    if output.json:
        render.emit_json(found)
    else:
        _show(found, ask.protocol(project).select == "held-out")


def _train(project: Any, service: Any, run: str, items: Any, jobs: int) -> None:
    """Train the networks that are missing, with a bar and a line for each that is done."""
    from espctl import render

    output = project.settings.output
    done: dict[tuple[str, int], int] = {}
    with render.Progress(sum(item.epochs for item in items), f"evaluate {run}", output.quiet) as progress:

        def on_event(event: dict[str, Any]) -> None:
            done[event["run"], event["seed"]] = event["epoch"]
            progress.update(sum(done.values()), run=event["run"].partition("-")[0], seed=event["seed"])

        for record in service.score(project, items, jobs, on_event, outcome.waiting(output.quiet or output.json)):
            render.note(f"{record.run_id} seed {record.seed}: {record.accuracy:.2%}", output.quiet or output.json)


def _show(found: Any, selects: bool) -> None:
    """The scores as a table; `selects` says that the epoch was chosen on held-out images."""
    from espctl import render

    title = f"{found[0].network}, protocol {found[0].protocol}"
    rows = [(s.run, render.percent(s.mean, s.sd), s.n, render.percent(s.best_mean, s.best_sd)) for s in found]
    if selects:
        render.table(("run", "accuracy %", "n"), [row[:3] for row in rows], title)
        render.prose("The epoch was chosen on held-out training images; the test set was looked at once, there.")
        return
    render.table(("run", "accuracy %", "n", "best check %"), rows, title)
    render.prose("Accuracy is that after the last epoch; the best check was chosen on the test set.")
