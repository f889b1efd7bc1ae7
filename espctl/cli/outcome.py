"""How work is shown while it is done, and a condensation when it is done, whichever command made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def waiting(quiet: bool) -> Callable[[str], None]:
    """What tells, unless `quiet`, that this process waits for what another one is making."""
    from espctl import render

    return lambda name: render.note(f"another process is making {name}: waiting for it", quiet)


def metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Metrics and cost, what matters most first, for the end of the line is cut on a narrow screen."""
    first = [name for name in ("loss", "images/s", "memory") if name in values]
    return {name: values[name] for name in [*first, *(name for name in values if name not in first)]}


def show(project: Any, run: Any) -> None:
    """A finished run: what it is of, what it stores and what it took."""
    from espctl import render

    if project.settings.output.json:
        render.emit_json(run)
        return
    render.record(
        {
            "run": run.id,
            "method": run.method,
            "preset": run.preset,
            "data set": f"{run.dataset}, {run.ipc} per class",
            "network": run.network,
            "stored": f"{run.parametrisation}, {run.stored_numbers:,} of {run.budget_numbers:,} numbers{_over(run)}",
            "seconds": run.seconds,
            "peak memory": f"{run.peak_memory_bytes / 1e6:,.0f} MB",
            "folder": render.path(project.home / run.folder),
        }
    )


def _over(run: Any) -> str:
    """Only label rows can go beyond the budget: everything else is refused before the run."""
    beyond = run.stored_numbers - run.budget_numbers
    return f", {beyond:,} over the budget by learned labels" if beyond > 0 else ""
