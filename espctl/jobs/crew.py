"""Several processes that do the same work side by side, each until it finds nothing to do; a lost one is replaced.

The work is divided by the workers themselves (see `espctl.services.tuning.study`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from espctl.errors import RunError
from espctl.jobs import pool

T = TypeVar("T")

DEATHS = 3
"""So many workers may be killed without anything done in between."""


def run(work: Callable[[T, pool.Report], None], item: T, jobs: int, on_event: pool.Report) -> None:
    """Have `jobs` processes do `work(item, report)` each; return when all have returned.

    Args:
        work: a module-level function; it and `item` cross processes. One job works in this process.
        on_event: called in this process with every event; {"kind": "lost"} says that a worker was killed and is
            replaced, and {"kind": "ended", ...} of a worker that something was done.

    Raises:
        whatever `work` raised first; the other workers are stopped, and have saved what they were doing.
        RunError: workers are killed again and again.
    """
    if jobs <= 1:
        work(item, on_event)
        return
    deaths = 0
    with pool.Workers(work) as workers:
        for _ in range(jobs):
            workers.start(item)
        while workers:
            for worker, message in workers.messages():
                if isinstance(message, pool.Done):
                    workers.dismiss(worker)
                elif isinstance(message, pool.Lost):
                    deaths += 1
                    if deaths >= DEATHS:
                        raise RunError(
                            f"{deaths} workers in a row were killed ({message.how})",
                            "perhaps memory ran out: lower --jobs or --chunk",
                        )
                    on_event({"kind": "lost"})
                    workers.start(item)
                else:
                    deaths = 0 if message["kind"] == "ended" else deaths
                    on_event(message)
