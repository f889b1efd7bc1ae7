"""What `condense --profile` prints: where the time of a step goes."""

from __future__ import annotations

import os
from typing import Any

from espctl.cli.dry_run import device_text

NOTE = (
    "The floor is what the convolutions and matrix products of a step take at the pace of this machine, measured just "
    "now on tensors of the same size. The trace opens in Perfetto (ui.perfetto.dev) and in Chrome (chrome://tracing)."
)


def condensation(project: Any, request: Any) -> None:
    """Profile some steps of a run and show it."""
    from espctl import render
    from espctl.services import profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch's profiler writes about itself on standard error

    render.note("profiling: some steps of the run, nothing is kept but the trace", project.settings.output.quiet)
    found = profile.condensation(project, request)
    if project.settings.output.json:
        render.emit_json(found)
        return
    floor = found.floor
    paces = ", ".join(f"{pace / 1e9:,.1f} G/s ({kind})" for kind, pace in floor.pace.items())
    render.record(
        {
            "run": f"{found.run} (not entered)",
            "device": device_text(found.compute),
            **({"experts": "missing: others of their size stood in"} if found.stand_ins else {}),
            "step": f"{_time(found.step_seconds)} for {render.count(found.images, 'image')}",
            "profiled": f"{found.steps} steps of {_time(found.profiled_seconds)}",
            "operations": f"{floor.operations / 1e9:,.3g} G, {floor.passes:.1f} forward passes of the synthetic set",
            "pace": paces,
            "floor": f"{_time(floor.seconds)}: the step takes {floor.times:.1f} times as long",
            "trace": f"{render.path(found.trace)} ({found.trace_bytes / 1e6:.1f} MB)",
        }
    )
    for title, rows in (("Parts of a step", found.parts), ("Operators that take longest", found.operators)):
        render.line("")
        cells = [(one.name, _time(one.seconds), f"{one.share:.1%}", f"{one.calls:.4g}") for one in rows]
        render.table((title.split(" ")[0].lower().rstrip("s"), "time", "share", "calls"), cells, title)
    render.prose(NOTE)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
