"""What `--dry-run` prints: the cost of a piece of work, from a few steps of it."""

from __future__ import annotations

from typing import Any

NOTE = (
    "Measured with a few steps on this machine as busy as it is now. Scores: the protocol marked * was measured, the "
    "others follow from it by their operations."
)


def condensation(project: Any, request: Any) -> None:
    """Estimate a run and show it."""
    from espctl import render
    from espctl.services.estimating import estimate

    render.note("dry run: a few steps, nothing is kept", project.settings.output.quiet)
    found = estimate.condensation(project, request)
    if project.settings.output.json:
        render.emit_json(found)
        return
    steps = f"{found.step_seconds:.4g} s for each of {found.steps:,}, mean of {found.timed_steps}"
    render.record(
        {
            "run": f"{found.run} (not entered)",
            "device": device_text(found.compute),
            "start": f"{found.start_seconds:.1f} s",
            "compilation": f"{found.compile_seconds:.1f} s" if found.compute.compile else "off",
            "steps": steps if found.steps else "none: a selection, carried out",
            "time": f"{render.duration(found.seconds)} ({found.seconds:,.0f} s)",
            "peak memory": _size(found.peak_memory_bytes),
            "disk": f"{_size(found.disk_bytes)} while it runs, {_size(found.set_bytes)} for the set; "
            f"{_size(found.free_bytes)} free",
        }
    )
    if found.experts is not None:
        render.line("")
        render.line("Experts are missing; the steps were timed with a stand-in. Building them:")
        building(found.experts)
    render.line("")
    columns = ("protocol", "network", "epochs", "one network", render.count(found.scoring[0].seeds, "network"))
    rows = [
        (f"{s.protocol}{' *' if s.measured else ''}", s.network, s.epochs, *map(render.duration, (s.seconds, s.total)))
        for s in found.scoring
    ]
    render.table(columns, rows, "Scores")
    render.prose(NOTE)


def experts(project: Any, request: Any) -> None:
    """Estimate a build of experts and show it."""
    from espctl import render
    from espctl.services.estimating import costs

    render.note("dry run: a few batches, nothing is kept", project.settings.output.quiet)
    found = costs.building(project, request)
    if project.settings.output.json:
        render.emit_json(found)
    else:
        building(found)


def building(found: Any) -> None:
    """Show the cost of experts."""
    from espctl import render

    render.record(
        {
            "store": found.store,
            "device": device_text(found.compute),
            "to train": f"{render.count(found.missing, 'expert')} of {found.epochs} epochs, {found.finished} are there",
            "epoch": f"{found.epoch_seconds:.4g} s",
            "one expert": render.duration(found.seconds),
            "time": f"{render.duration(found.total)} ({found.total:,.0f} s), {found.jobs} at the same time",
            "peak memory": _size(found.peak_memory_bytes),
            "disk": f"{_size(found.bytes)}; {_size(found.free_bytes)} free",
        }
    )


def device_text(compute: Any) -> str:
    """Where and how it is computed."""
    threads = f", {compute.threads} threads" if compute.device == "cpu" else ""
    return f"{compute.device}{threads}, {'compiled' if compute.compile else 'not compiled'}"


def _size(count: int) -> str:
    """Bytes as people read them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
