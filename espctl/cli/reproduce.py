"""`espctl reproduce`: a whole table from nothing, within a budget of time."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from espctl.cli import options

Table = Annotated[str, typer.Argument(metavar="TABLE", help="table1, table2, table3 or table4.", show_default=False)]
DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", "-d", metavar="NAME", help="Data set.", autocompletion=options.complete_dataset),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", "-m", metavar="NAME", help="Only this one; may be repeated.", show_default=False),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="TIME", help="How long it may take, about: 20m, 2h; else as long as published."),
]
Level = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="paper or quick; else the best that fits the budget.")
]
Ipc = Annotated[int | None, typer.Option("--ipc", min=1, help="Only this budget of images per class.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Networks that score a set.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Replan = Annotated[bool, typer.Option("--replan", help="Measure and plan again; finished runs count again.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="Cells at the same time; 0: one for each core.")]
NOTES = (
    "Accuracy in percent after the last epoch, mean ± standard deviation over n networks. ",
    "Verdict: the difference to the published value in standard deviations of that difference. ",
    "Verdict where nothing is published: better than random selection by more than the standard deviation of the "
    "difference, or not. ",
    "* not comparable: another network, protocol, protocol length or preset than published. ",
)


def reproduce(
    table: Table,
    dataset: DatasetName = None,
    ipc: Ipc = None,
    method: Methods = None,
    budget: Budget = None,
    preset: Level = None,
    network: options.Network = None,
    seeds: Seeds = None,
    seed: options.Seed = None,
    dry_run: DryRun = False,
    replan: Replan = False,
    jobs: Jobs = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Make a table of the paper: experts, every method, random selection, scores, and a verdict for each cell.

    What is finished is not repeated: stop it with Ctrl-C and give the same command again.
    """
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.reproduction import plan as plans
    from espctl.services.reproduction import reproduce as service
    from espctl.services.reproduction import reproduced

    begun = time.monotonic()
    flags = {
        "condense.seed": seed,
        **options.compute_flags(device, threads, None),
        **options.output_flags(home, json, quiet),
    }
    project = Project.open(flags)
    output = project.settings.output
    asked = _asked(project, table, dataset, ipc, method, budget, preset, network, seeds, jobs)
    made = _plan(project, asked, replan)
    if dry_run:
        _show_plan(project, made)
        return
    if not (output.quiet or output.json):
        level = plans.LEVELS[made.level]
        render.note(f"{render.count(len(made.works), 'set')}, about {render.duration(made.seconds)} in all; {level}")
    total = max(1, round(sum(w.whole for w in made.works) + sum(e.seconds for e in made.experts)))
    with render.Progress(total, f"reproduce {table}", output.quiet) as progress:
        course = service.carry_out(
            project,
            made,
            lambda done, what: progress.update(min(total, round(done)), now=what),
            lambda sentence: render.note(sentence, output.quiet or output.json),
        )
    rows = reproduced.rows(project, made, course)
    took = time.monotonic() - begun
    if output.json:
        render.emit_json({"plan": plans.plain(made), "rows": rows, "took_seconds": took})
    else:
        _show(table, made, rows, took)
    if any(row.message for row in rows):
        raise typer.Exit(1)


def _asked(
    project: Any, table: str, dataset: str | None, ipc: int | None, methods: list[str] | None, budget: str | None,
    preset: str | None, network: str | None, seeds: int | None, jobs: int,
) -> Any:  # fmt: skip
    """The request, with the device and the processes that its times depend on."""
    from esp.errors import UnknownNameError
    from espctl.jobs.compute import device_of
    from espctl.services.reproduction import plan as plans
    from espctl.services.reproduction.gauge import jobs_of

    if preset not in (None, "paper", "quick"):
        raise UnknownNameError("preset", preset or "", ["paper", "quick"])
    device = device_of(project.settings.compute)
    processes, threads = jobs_of(project, jobs, device)
    return plans.Asked(
        table=table,
        dataset=dataset or "",
        ipc=ipc or 0,
        methods=tuple(methods or ()),
        budget=plans.parse_budget(budget) if budget else 0.0,
        level=preset or "",
        network=network or "",
        seeds=seeds or 0,
        seed=project.settings.condense.seed,
        device=device,
        jobs=processes,
        threads=threads,
    )


def _plan(project: Any, asked: Any, replan: bool) -> Any:
    """The plan that was kept, or a new one, which is kept."""
    from espctl import render
    from espctl.services.reproduction import plan as plans

    quiet = project.settings.output.quiet or project.settings.output.json
    plans.cells(asked)  # what does not exist is said before anything is measured
    kept = None if replan else plans.kept(project, asked)
    if kept is not None:
        render.note(f"goes by the plan in {render.path(plans.location(project, asked))}; --replan makes another", quiet)
        return kept
    from espctl.services.reproduction.planner import Planner

    with render.Progress(len(plans.cells(asked)), "measuring", quiet) as progress:
        looked: list[str] = []

        def on_look(what: str) -> None:
            looked.append(what)
            progress.update(min(len(looked), len(plans.cells(asked))), now=what)

        made = Planner(project, asked, on_look).make()
    plans.keep(project, made)
    return made


def _show_plan(project: Any, made: Any) -> None:
    """What is missing, with its time."""
    from espctl import render
    from espctl.services.reproduction import plan as plans
    from espctl.services.reproduction.pending import states_of

    states = states_of(project, made)
    if project.settings.output.json:
        render.emit_json({"plan": plans.plain(made), "missing": states})
        return
    columns = ("cell", "condense", "score", "state", "steps", "options")
    rows: list[tuple[object, ...]] = [
        (f"{render.count(work.count, 'expert')}, {work.dataset}", render.duration(work.seconds), "-", state,
         work.epochs, work.network)
        for work, state in zip(made.experts, states.experts, strict=True)
    ]  # fmt: skip
    for work, state in zip(made.works, states.works, strict=True):
        score = sum(scoring.seconds for scoring in work.scorings)
        cell = f"{work.label} {work.dataset} {work.ipc}"
        took = render.duration(work.seconds), render.duration(score)
        rows.append((cell, *took, state, work.steps, f"{work.preset} {work.note}".strip()))
    whole, left = render.duration(made.seconds), render.duration(states.seconds)
    render.table(columns, rows, f"Plan of {made.asked.table}: about {whole}, {left} of it missing")
    processes = f"{made.asked.jobs} at a time on {made.asked.device}, {made.asked.threads} threads each."
    render.prose(f"{' '.join(plans.differences(made))} {processes}")
    _complain(made.problems)


def _show(table: str, made: Any, rows: list[Any], took: float) -> None:
    """The table, what it was made with, and what failed."""
    from espctl import render
    from espctl.report.layout import accuracy
    from espctl.services.reproduction import plan as plans

    columns = ("method", "accuracy", "n", "published", "diff", "verdict", "stored", "options")
    cells = [
        (
            row.method, accuracy(row.mean, row.sd), str(row.n), accuracy(row.published, row.published_sd),
            "-" if row.difference is None else f"{row.difference:+.1f}{'' if row.comparable else ' *'}",
            row.verdict, row.stored or "-", row.options or "-", row.dataset, str(row.ipc), row.network,
        )
        for row in rows
    ]  # fmt: skip
    movable = {"data set": 8, "ipc": 9, "network": 10}
    shown = {name: place for name, place in movable.items() if len({cell[place] for cell in cells}) > 1}
    order = [0, *shown.values(), *range(1, 8)]
    headings = (columns[0], *shown, *columns[1:])
    where = ", ".join(dict.fromkeys(f"{row.dataset}, {row.ipc} per class" for row in rows))
    render.table(headings, [tuple(cell[place] for place in order) for cell in cells], f"{table}: {where}")
    said = [NOTES[0]]
    said += [NOTES[1]] if any(row.published is not None for row in rows) else []
    said += [NOTES[2]] if any(row.published is None for row in rows) else []
    said += [NOTES[3]] if any(row.difference is not None and not row.comparable for row in rows) else []
    asked = f" of {render.duration(made.asked.budget)}" if made.asked.budget else ""
    render.prose(f"{''.join(said)}{' '.join(plans.differences(made))} Took {render.duration(took)}{asked}.")
    _complain([row for row in rows if row.message])


def _complain(found: Any) -> None:
    """A sentence and a remedy for every cell that failed, once."""
    from espctl import render

    for label, message, hint in dict.fromkeys(
        (getattr(one, "label", None) or one.method, one.message, one.hint) for one in found
    ):
        render.line(f"{label}: {message}")
        render.line(f"  {hint}")
