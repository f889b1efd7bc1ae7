"""`espctl rerun`: a run once more, and whether the same comes out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from espctl.cli import options, outcome


def rerun(
    run: options.RunArgument,
    check: Annotated[bool, typer.Option("--check", help="Compare the results; exit 1 when they differ.")] = False,
    home: options.Home = None,
    json: options.Json = None,
    quiet: options.Quiet = None,
) -> None:
    """Repeat a run from its request, with its seed, device and threads, as a new run.

    With --check, say whether every number of the synthetic set and every metric is the same, and what differs in
    program and machine.
    """
    from espctl import render
    from espctl.services import rerun as service
    from espctl.services.project import Project

    project = Project.open(options.output_flags(home, json, quiet))
    output = project.settings.output
    record, steps = service.steps_of(project, run)
    with render.Progress(steps, f"repeat {record.id}", output.quiet) as progress:

        def on_progress(done: int, values: dict[str, Any]) -> None:
            progress.update(done, **outcome.metrics(values))

        if not check:
            repeated = service.repeat(project, record, on_progress)
        else:
            found = service.check(project, record, on_progress)
    if not check:
        outcome.show(project, repeated)
        return
    if output.json:
        render.emit_json(found)
    else:
        _compared(found)
    if not found.same or found.same_metrics is False:
        raise typer.Exit(1)


def _compared(found: Any) -> None:
    from espctl import render

    same = {True: "the same", False: "different", None: "none"}
    metrics = same[found.same_metrics]
    render.record(
        {
            "run": found.run,
            "repeated as": found.repeated if found.repeated != found.run else "nothing: compressed again aside",
            "synthetic set": f"{same[found.same]}: {found.digest[:12]}"
            + ("" if found.same else f" and {found.repeated_digest[:12]}"),
            "metrics": metrics if found.first_step is None else f"{metrics} from step {found.first_step}",
        }
    )
    for tensor in found.differences:
        size = "missing or of another shape" if tensor.largest is None else f"off by up to {tensor.largest:.3g}"
        share = "" if tensor.relative is None else f", {tensor.relative:.2g} of its largest number"
        render.line(f"  {tensor.tensor}: {size}{share}")
    for fact in found.facts:
        render.line(f"  {fact.name}: then {fact.then}, now {fact.now}")
    if not found.facts and not found.same:
        render.line("  program, machine, threads and device are the same")
