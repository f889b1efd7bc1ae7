"""Several processes that do the same work side by side, each until it finds nothing to do; a lost one is replaced.

The work is divided by the workers themselves (see `espctl.services.tuning.study`). Each has a pipe of its own to this
process: a queue that they share would stay locked for ever by one that is killed while it writes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from espctl.errors import Interrupted, RunError, translate
from espctl.jobs import pool, signals

T = TypeVar("T")

DEATHS = 3
"""So many workers may be killed without anything done in between."""

GRACE = 0.3  # seconds


def run(work: Callable[[T, pool.Report], None], item: T, jobs: int, on_event: pool.Report) -> None:
    """Have `jobs` processes do `work(item, report)` each; return when all have returned.

    Args:
        work: a module-level function; it and `item` cross processes. One job works in this process.
        on_event: called in this process with every event; {"kind": "lost", "signal": n} says that a worker was killed
            and is replaced, and {"kind": "ended", ...} of a worker that something was done.

    Raises:
        whatever `work` raised first; the other workers are stopped, and have saved what they were doing.
        RunError: workers are killed again and again.
    """
    if jobs <= 1:
        work(item, on_event)
        return
    workers: dict[Connection, BaseProcess] = {}
    with _stopped(workers):
        for _ in range(jobs):
            _start(work, item, workers)
        deaths = 0
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                message = _receive(connection)
                if message is None:
                    _close(connection, workers)
                elif isinstance(message, dict):
                    deaths = 0 if message["kind"] == "ended" else deaths
                    on_event(message)
                elif isinstance(message, BaseException) and not isinstance(message, Interrupted):
                    raise message
                else:
                    number = -(_close(connection, workers) or -signal.SIGTERM)
                    time.sleep(GRACE)  # a Ctrl-C that the worker heard of is on its way here as well
                    deaths += 1
                    if deaths >= DEATHS:
                        raise RunError(
                            f"{deaths} workers in a row were killed (signal {number})",
                            "perhaps memory ran out: lower --jobs or --chunk",
                        )
                    on_event({"kind": "lost", "signal": number})
                    _start(work, item, workers)


def _start(work: Callable[[T, pool.Report], None], item: T, workers: dict[Connection, BaseProcess]) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(work, item, theirs), daemon=True)
    with signals.held():  # a worker starts with signals held back, and takes them once it can handle them
        process.start()
    theirs.close()  # else its end would stay open with this process, and its death would not be seen
    workers[ours] = process


def _receive(connection: Connection) -> Any:
    """An event, an error, None for an orderly end, or False when the worker is gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return False


def _close(connection: Connection, workers: dict[Connection, BaseProcess]) -> int | None:
    process = workers.pop(connection)
    connection.close()
    process.join()
    return process.exitcode


@contextlib.contextmanager
def _stopped(workers: dict[Connection, BaseProcess]) -> Iterator[None]:
    """Whatever ends the block ends the workers, after they have saved what they do."""
    try:
        yield
    finally:
        for connection, process in workers.items():
            process.terminate()
            connection.close()  # a worker that waits for somebody to read would never hear of it
        for process in workers.values():
            process.join()


def _live(work: Callable[[T, pool.Report], None], item: T, connection: Connection) -> None:
    """The life of a worker."""

    def report(event: pool.Event) -> None:
        signals.check()
        try:
            connection.send(event)
        except OSError:  # whoever started this process is gone
            raise KeyboardInterrupt from None

    for number in signals.SIGNALS:
        signal.signal(number, signals.interrupt_once)
    signals.listen()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    message: Any = None
    try:
        with signals.stoppable():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
            work(item, report)
    except KeyboardInterrupt:
        message = Interrupted()
    except BaseException as error:
        message = translate(error)
    with contextlib.suppress(OSError):
        connection.send(message)


def _die_with_parent() -> None:
    """Stop, saving what is under way, when the process that started this one is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
