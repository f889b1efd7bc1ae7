"""`espctl tune`: search for good options of a method, on held-out training images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from espctl.cli import condense, options

app = typer.Typer(invoke_without_command=True)

Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        help="The study to begin or go on with; default: METHOD-DATASET-IPC.",
        autocompletion=options.complete_study,
    ),
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study.", autocompletion=options.complete_study, show_default=False)
]
Space = Annotated[
    list[str] | None,
    typer.Option("--space", metavar="SPEC", help='Search another option: "segment=int(2,20)"; may be repeated.'),
]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="Trials that the study shall have in all.")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Trials worked on at the same time.")]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Stop after 90s, 15m or 2h.")]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="paper or quick.", autocompletion=options.complete_preset),
]
HeldOut = Annotated[
    float | None, typer.Option("--held-out", help="Fraction of the training images that scores the trials.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", "-e", min=1, help="Cut the protocol that scores a trial.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Networks that score a trial.")]
Pruner = Annotated[str | None, typer.Option("--pruner", metavar="NAME", help="median, hyperband, or none.")]
Out = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where the plots go; default: beside the study.")
]


@app.callback()
def tune(
    ctx: typer.Context,
    dataset: condense.DatasetName = None,
    ipc: condense.Ipc = None,
    method: options.Method = None,
    study: Study = None,
    trials: Trials = None,
    timeout: Timeout = None,
    jobs: Jobs = None,
    space: Space = None,
    set_: condense.Set = None,
    preset: Preset = None,
    network: options.Network = None,
    parametrisation: condense.Parametrisation = None,
    seed: options.Seed = None,
    experts: condense.ExpertStore = None,
    expert_count: condense.ExpertCount = None,
    held_out: HeldOut = None,
    protocol: options.Protocol = None,
    epochs: Epochs = None,
    seeds: Seeds = None,
    pruner: Pruner = None,
    device: options.Device = None,
    threads: options.Threads = None,
    compile: options.Compile = None,
    chunk: options.Chunk = None,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Search for good options of a method; every trial is a run, scored on held-out training images.

    Begin with --dataset and --ipc; beta and the learning rates are searched, other options by --space. The same
    command, or --study NAME alone, goes on with a study that was stopped, and in another terminal helps it.
    """
    if ctx.invoked_subcommand is not None:
        return
    from espctl.services.project import Project
    from espctl.services.tuning import tune as service

    flags = {"compute.chunk": chunk, **options.compute_flags(device, threads, compile)}
    project = Project.open({**flags, **options.output_flags(home, json, quiet)})
    asked = service.Asked(
        study=study, dataset=dataset, ipc=ipc, method=method, preset=preset, network=network,
        parametrisation=parametrisation, seed=seed, experts=experts, expert_count=expert_count,
        options=options.pairs(set_) if set_ else None, space=space or None, held_out=held_out,
        protocol=protocol, epochs=epochs, seeds=seeds, pruner=pruner, trials=trials, jobs=jobs,
        timeout=None if timeout is None else seconds(timeout),
    )  # fmt: skip
    _work(project, service, asked)


def _work(project: Any, service: Any, asked: Any) -> None:
    from espctl import render

    output, prepared = project.settings.output, service.prepare(project, asked)
    for text in prepared.notes:
        render.note(text, output.quiet)
    points = prepared.study.points()
    scores = [point.value for point in points if point.value is not None]
    done = {point.number for point in points if point.state != "running"}
    shares: dict[int, float] = {}
    with render.Progress(prepared.work.goal, f"tune {prepared.study.name}", output.quiet) as progress:

        def hear(event: dict[str, Any]) -> None:
            if event["kind"] == "lost":
                render.note("a worker was killed; its trial is taken over", output.quiet)
                return
            shares[event["trial"]] = event.get("share", 0.0)
            if event["kind"] == "ended":
                done.add(event["trial"])
                scores.extend([event["value"]] if event["value"] is not None else [])
                render.note(_ended(event), output.quiet or output.json)
            under_way = {f"trial {n}": f"{share:.0%}" for n, share in sorted(shares.items()) if n not in done}
            progress.update(len(done), **({"best": f"{max(scores):.1%}"} if scores else {}), **under_way)

        view = service.run(project, prepared, hear)
    finished = len(view.points) - view.states.get("running", 0)
    if finished < prepared.work.goal:
        line = f"espctl tune --study {view.name} --trials {prepared.work.goal} --jobs {prepared.jobs}"
        render.note(f"time is up after {finished} of {prepared.work.goal} trials; go on with: {line}", output.quiet)
    _show(project, view)


def _ended(event: dict[str, Any]) -> str:
    reason = f" {event['reason']}" if event["reason"] else ""
    score = f"{event['value']:.1%}" if event["value"] is not None else f"{event['state']}{reason}"
    return f"trial {event['trial']}: {score}"


def _show(project: Any, view: Any) -> None:
    from espctl import render

    if project.settings.output.json:
        render.emit_json(_plain(view))
        return
    best, default = view.best, view.default
    render.record(
        {
            "study": view.name,
            "method": f"{view.plan.method} on {view.plan.dataset}, {view.plan.ipc} per class, {view.plan.network}",
            "scored": view.scoring,
            "trials": ", ".join(f"{count} {state}" for state, count in view.states.items()) or "none yet",
            "best": f"{best.value:.1%} (trial {best.number}, run {best.run})" if best else None,
            "default": f"{default.value:.1%}" if default else None,
            **({f"  {name}": value for name, value in best.options.items()} if best else {}),
        }
    )
    if best:
        render.prose("The best of many scores is an optimistic one; use these options and evaluate on the test set:")
        render.line(f"espctl condense --from-study {view.name}")


def _plain(view: Any) -> dict[str, Any]:
    """A study as JSON, without its trials."""
    return {
        "name": view.name,
        "plan": view.plan,
        "created": view.created,
        "storage": view.storage,
        "states": view.states,
        "best": view.best,
        "default": view.default,
    }


@app.command("ls")
def ls(home: options.Home = None, json: options.Json = None) -> None:
    """List the studies."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.tuning import studies as service

    project = Project.open(options.output_flags(home, json))
    found = service.views(project)
    if project.settings.output.json:
        render.emit_json([_plain(view) for view in found])
        return
    if not found:
        render.note("there are no studies yet: espctl tune --dataset digits --ipc 1 --method dm")
        return
    rows = [
        (
            view.name,
            f"{view.plan.method} {view.plan.dataset} {view.plan.ipc}",
            *(view.states.get(state, 0) for state in ("complete", "pruned", "failed", "running")),
            _percent(view.best),
            _percent(view.default),
        )
        for view in found
    ]
    render.table(("study", "of", "done", "pruned", "failed", "open", "best %", "default %"), rows)


@app.command()
def show(study: StudyArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Show a study and all its trials."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.tuning import studies as service

    project = Project.open(options.output_flags(home, json))
    view = service.show(project, study)
    if project.settings.output.json:
        render.emit_json({**_plain(view), "trials": view.points})
        return
    _show(project, view)
    render.line("")
    searched = service.space_of(view.plan)
    rows = [
        (
            point.number,
            point.state,
            _percent(point),
            *(_short(point.options.get(name)) for name in searched),
            point.run,
            point.reason,
        )
        for point in view.points
    ]
    if rows:
        render.table(("trial", "state", "held-out %", *searched, "run", "why"), rows)
        render.line("")
    render.record(searched)
    render.line("")
    storage = render.path(project.home / view.storage)
    render.line(f"optuna-dashboard sqlite:///{storage}")


@app.command()
def best(study: StudyArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Show the best trial of a study, and the line that uses its options."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.tuning import studies as service

    project = Project.open(options.output_flags(home, json))
    view, found = service.best(project, study)
    if project.settings.output.json:
        render.emit_json({**_plain(view), "best": found})
    else:
        _show(project, view)


@app.command()
def importance(study: StudyArgument, home: options.Home = None, json: options.Json = None) -> None:
    """Show how much each option matters to the score."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.tuning import studies as service

    project = Project.open(options.output_flags(home, json))
    found = service.importance(project, study)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        render.table(("option", "share %"), [(name, f"{100 * share:.1f}") for name, share in found.items()])


@app.command()
def plot(study: StudyArgument, out: Out = None, home: options.Home = None, json: options.Json = None) -> None:
    """Draw a study: a PNG for each plot, and one HTML page with all of them."""
    from espctl import render
    from espctl.services.project import Project
    from espctl.services.tuning import plots as study_plots

    project = Project.open(options.output_flags(home, json))
    paths = study_plots.draw(project, study, out)
    if project.settings.output.json:
        render.emit_json(paths)
        return
    for path in paths:
        render.line(render.path(path))


def seconds(text: str) -> float:
    """`90`, `90s`, `15m`, `2h` or `1h30m` in seconds.

    Raises:
        UsageError: it is none of these, or no time at all.
    """
    from espctl.errors import UsageError

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    parts = zip(match.groups() if match else (), (3600, 60, 1), strict=False)
    found = sum(float(part or 0) * unit for part, unit in parts)
    if not 0 < found < 1e9:
        raise UsageError(f"--timeout {text!r} is no time", "write for example 90s, 15m, 2h or 1h30m")
    return found


def _percent(point: Any) -> str | None:
    return None if point is None or point.value is None else f"{100 * point.value:.1f}"


def _short(text: str | None) -> str | None:
    """A number with four digits, other text as it is."""
    try:
        return None if text is None else f"{float(text):.4g}"
    except ValueError:
        return text
