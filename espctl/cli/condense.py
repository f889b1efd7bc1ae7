"""`espctl condense`: from a data set to a few synthetic images per class."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

import typer

from espctl.cli import options, outcome

DatasetName = Annotated[
    str | None,
    typer.Option("--dataset", "-d", metavar="NAME", help="Data set.", autocompletion=options.complete_dataset),
]
Ipc = Annotated[int | None, typer.Option("--ipc", help="Budget: so many plain images per class.")]
Parametrisation = Annotated[
    str | None,
    typer.Option(
        "--parametrisation",
        "-P",
        metavar="SPEC",
        help="pixels, multiformation[,factor=2], or latent[,decoders=4,...]; default: the method's.",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="What --set changes: paper (the published constants of data set and ipc), or quick (far fewer steps).",
        autocompletion=options.complete_preset,
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; may be repeated.")
]
ExpertStore = Annotated[
    str | None, typer.Option("--experts", metavar="STORE", help="Store of experts, when several fit.")
]
ExpertCount = Annotated[int | None, typer.Option("--expert-count", min=1, help="Use only so many of them.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="RUN", help="Go on with an unfinished run.", autocompletion=options.complete_run),
]
FromStudy = Annotated[
    str | None,
    typer.Option(
        "--from-study",
        metavar="STUDY",
        help="The best options that `espctl tune` found.",
        autocompletion=options.complete_study,
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Show where the time of a step goes; keep nothing but a Chrome trace.")
]
Again = Annotated[bool, typer.Option("--again", help="Repeat a run that was made before.")]
CheckpointEvery = Annotated[float | None, typer.Option(help="Seconds between checkpoints.")]


def condense(
    dataset: DatasetName = None,
    ipc: Ipc = None,
    method: options.Method = None,
    network: options.Network = None,
    parametrisation: Parametrisation = None,
    preset: Preset = "paper",
    set_: Set = None,
    space: options.Space = None,
    seed: options.Seed = None,
    experts: ExpertStore = None,
    expert_count: ExpertCount = None,
    from_study: FromStudy = None,
    resume: Resume = None,
    again: Again = False,
    dry_run: options.DryRun = False,
    profile: Profile = False,
    device: options.Device = None,
    threads: options.Threads = None,
    compile: options.Compile = None,
    chunk: options.Chunk = None,
    checkpoint_every: CheckpointEvery = None,
    log: options.Log = None,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Condense a data set and store the result as a run.

    Without --set a method has the options of its preset: `espctl methods show METHOD -d NAME --ipc N` lists them.
    Change one with --set, for example --set steps=2000 --set beta=1e-4.
    """
    from espctl.services.project import Project

    flags = {
        "condense.method": method,
        "condense.network": network,
        "condense.seed": seed,
        "compute.chunk": chunk,
        "compute.checkpoint_every": checkpoint_every,
        "logging.to": log,
        **options.compute_flags(device, threads, compile),
        **options.output_flags(home, json, quiet),
    }
    project = Project.open(flags)
    if profile:
        _require_alone(resume, dry_run, again)
    if resume:
        _resume(project, resume, dry_run)
        return
    project, request = _request(project, dataset, ipc, method, network, preset, from_study)
    request = replace(
        request,
        options={**request.options, **options.pairs(set_ or [])},
        parametrisation=parametrisation or request.parametrisation,
        experts=experts or "",
        expert_count=expert_count or 0,
        space=space or "",
    )
    if dry_run:
        from espctl.cli import dry_run as estimate

        estimate.condensation(project, request)
    elif profile:
        from espctl.cli import profile as profiling

        profiling.condensation(project, request)
    else:
        _make(project, request, again)


def _require_alone(resume: str | None, dry_run: bool, again: bool) -> None:
    """Profiling is something else than these."""
    from espctl.errors import UsageError

    for option, given in (("--resume", resume), ("--dry-run", dry_run), ("--again", again)):
        if given:
            raise UsageError(f"--profile and {option} exclude each other", "leave out one of the two")


def _resume(project: Any, name: str, dry_run: bool) -> None:
    from espctl.errors import UsageError
    from espctl.services import condense as service

    if dry_run:
        raise UsageError("--dry-run is about a new run, not about --resume", "leave out one of the two")
    run, steps = service.steps_of(project, name)
    _carry_out(project, run, steps, lambda on_progress: service.resume(project, run, on_progress))


def _make(project: Any, request: Any, again: bool) -> None:
    from espctl.services import condense as service

    prepared = service.prepare(project, request)
    known = service.existing(project, prepared)
    if known and not again and (run := service.at_rest(project, known.id)):
        _known(project, run)
        return
    on_wait = outcome.waiting(project.settings.output.quiet)
    _carry_out(
        project, prepared.run, prepared.steps,
        lambda on_progress: service.start(project, prepared, on_progress, again, on_wait),
    )  # fmt: skip


def _request(
    project: Any, dataset: str | None, ipc: int | None, method: str | None, network: str | None, preset: str,
    study: str | None,
) -> tuple[Any, Any]:  # fmt: skip
    """What is asked for, without the options of the command line, and the project with the settings that it needs."""
    from espctl.errors import UsageError
    from espctl.services import condense as service

    if study:
        return _best(project, study, dataset, ipc, method, network)
    if dataset is None or ipc is None:
        raise UsageError(
            "condense needs a data set and a number of images per class", "give --dataset NAME --ipc N, or --resume RUN"
        )
    return project, service.Request(dataset, ipc, {}, preset=preset)


def _best(
    project: Any, study: str, dataset: str | None, ipc: int | None, method: str | None, network: str | None
) -> tuple[Any, Any]:
    """The request of a study's best trial for the whole training set, and the project with its method and network."""
    from espctl import render
    from espctl.errors import UsageError
    from espctl.services import condense as service
    from espctl.services.tuning import studies

    plan, found, origin = studies.request_of_best(project, study)
    if method not in (None, plan.method):
        raise UsageError(f"the study {study} is of method {plan.method}, not {method}", "leave out --method")
    name, count = dataset or plan.dataset, ipc or plan.ipc
    render.note(f"best of {study}: " + render.text(found), project.settings.output.quiet)
    request = service.Request(
        name, count, found, parametrisation=plan.parametrisation, preset=plan.preset, from_study=origin
    )
    chosen = {"condense.method": plan.method, **({} if network else {"condense.network": plan.network})}
    return project.with_settings(chosen), request


def _known(project: Any, run: Any) -> None:
    """A run of the same request exists: show it when it is finished, say how to go on when not."""
    from espctl import render
    from espctl.errors import RunError

    if run.state != "finished":
        raise RunError(
            f"the run {run.id} of this request is {run.state}",
            f"go on: espctl condense --resume {run.id}; or start afresh with --again",
        )
    render.note(f"{run.id} has done exactly this already; --again repeats it", project.settings.output.quiet)
    outcome.show(project, run)


def _carry_out(project: Any, run: str, steps: int, work: Any) -> None:
    from espctl import render

    output, begun = project.settings.output, time.monotonic()
    with render.Progress(steps, run, output.quiet) as progress:
        record = work(lambda done, values: progress.update(done, **outcome.metrics(values)))
    render.note(f"{record.id}: finished in {render.duration(time.monotonic() - begun)}", output.quiet)
    outcome.show(project, record)
