"""Work in processes of one's own: each at the other end of a pipe, with one stream of events to the caller.

A queue that workers share would stay locked for ever by one that is killed while it holds it, and would keep the others
alive when this process is gone. A worker saves what it is doing when it is interrupted or its parent is gone; while it
is imported, and between two items, it has nothing to save, and SIGTERM ends it at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

from espctl.errors import Interrupted, RunError, exit_code, translate
from espctl.jobs import signals

T = TypeVar("T")
R = TypeVar("R")
Event = dict[str, Any]
Report = Callable[[Event], None]

GRACE = 0.3
"""Seconds after a worker's death in which a Ctrl-C or SIGTERM that it heard of arrives here as well."""


@dataclass(frozen=True)
class Done:
    """An item was done, with this result."""

    value: Any


@dataclass(frozen=True)
class Lost:
    """A worker ended before its item was done: its exit code, or minus the signal that killed it."""

    code: int

    @property
    def how(self) -> str:
        """The code in words."""
        return f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


def run_all(work: Callable[[T, Report], R], items: Sequence[T], jobs: int, on_event: Report) -> Iterator[tuple[T, R]]:
    """Yield each item with its result as it is done.

    Args:
        work: a module-level function of an item and a function that reports events; all of them cross processes.
        items: what to do; with one job in order, else in any order.
        jobs: processes; 1 works in this one.
        on_event: called in this process with every event, with an item's before its result is yielded.

    Raises:
        whatever `work` raised first; the other workers are stopped, and have saved what they were doing.
        Interrupted: a worker was, by somebody else.
        RunError: a worker was killed.
    """
    if jobs <= 1 or len(items) <= 1:
        for item in items:
            yield item, work(item, partial(_report, on_event))
        return
    left = deque(items)
    doing: dict[Connection, T] = {}
    with Workers(work) as workers:
        for _ in range(min(jobs, len(items))):
            item = left.popleft()
            doing[workers.start(item)] = item
        while workers:
            for worker, message in workers.messages():
                if isinstance(message, Done):
                    item = doing.pop(worker)
                    if left:
                        doing[worker] = left.popleft()
                        workers.give(worker, doing[worker])
                    else:
                        workers.dismiss(worker)
                    yield item, message.value
                elif isinstance(message, Lost):
                    if -message.code in signals.SIGNALS:
                        raise Interrupted
                    raise RunError(
                        f"a process was killed ({message.how}), perhaps for memory",
                        "the same command goes on with what is missing; with --jobs 1 it needs less memory",
                    )
                else:
                    on_event(message)


class Workers(Generic[T]):
    """Processes that do `work(item, report)`; whatever ends the block ends them, after they have saved.

    The work and its items cross processes. A worker is known by the connection to it.
    """

    def __init__(self, work: Callable[[T, Report], Any]) -> None:
        self._work = work
        self._processes: dict[Connection, BaseProcess] = {}
        self._dismissed: list[BaseProcess] = []

    def __enter__(self) -> Workers[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker, process in list(self._processes.items()):
            process.terminate()
            self.dismiss(worker)  # one that waits for somebody to read would never hear of the signal
        for process in self._dismissed:
            process.join()

    def __len__(self) -> int:
        """How many there are to hear from."""
        return len(self._processes)

    def start(self, item: T) -> Connection:
        """A new worker, with its first item."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_live, args=(theirs,))
        with signals.held():  # it begins life with signals held back
            process.start()
            self._processes[ours] = process
        theirs.close()  # else its end would stay open with this process, and its death would not be seen
        self.give(ours, item)
        return ours

    def give(self, worker: Connection, item: T) -> None:
        """Send a worker that has nothing to do its next item."""
        with contextlib.suppress(OSError):  # it was killed, which `messages` will say
            worker.send((self._work, item))

    def dismiss(self, worker: Connection) -> None:
        """Let a worker go that has nothing to do."""
        self._dismissed.append(self._processes.pop(worker))
        worker.close()

    def messages(self) -> Iterator[tuple[Connection, Any]]:
        """Wait for workers and yield what each says: an event, `Done`, or `Lost`, after which it is one no more.

        Raises:
            what `work` raised.
        """
        for worker in wait(list(self._processes)):
            assert isinstance(worker, Connection)
            try:
                message = worker.recv()
            except (EOFError, OSError):
                message = Interrupted()
            if isinstance(message, Interrupted):
                message = self._bury(worker)
            if isinstance(message, BaseException):
                raise message
            yield worker, message

    def _bury(self, worker: Connection) -> Lost:
        """The end of a worker that was killed, or has saved because it was interrupted."""
        process = self._processes.pop(worker)
        worker.close()
        process.join()
        time.sleep(GRACE)
        interrupted = process.exitcode in (0, exit_code(Interrupted()))
        return Lost(-signal.SIGTERM if interrupted else process.exitcode or 0)


def _live(connection: Connection) -> None:
    """The life of a worker: it receives work with an item, until there is no more."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # one that came when an item was done already
        while (packed := _received(connection)) is not None:
            try:
                work, item = ForkingPickler.loads(packed)  # here modules are imported
            except Exception as error:
                _send(connection, translate(error))
                return
            with signals.held():
                _send(connection, _outcome(work, item, connection))


def _received(connection: Connection) -> bytes | None:
    """What to do next; None when whoever started this process needs it no more, or is gone."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        return None


def _send(connection: Connection, outcome: Done | BaseException) -> None:
    """Send an outcome, or why it cannot cross processes; nothing where nobody is left to hear it."""
    with contextlib.suppress(OSError):
        try:
            connection.send(outcome)
        except OSError:
            raise
        except Exception as error:
            connection.send(translate(error))


def _end_with_parent() -> None:
    """Stop, saving what is under way, when the process that started this one is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(work: Callable[[T, Report], Any], item: T, connection: Connection) -> Done | BaseException:
    """Do an item, taking signals meanwhile; an error is returned as a sentence, for its traceback does not travel."""

    def report(event: Event) -> None:
        try:
            connection.send(event)
        except OSError:  # whoever started this process is gone
            raise KeyboardInterrupt from None

    with _listening():
        try:
            with signals.stoppable():
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
                return Done(work(item, partial(_report, report)))
        except KeyboardInterrupt:
            return Interrupted()
        except BaseException as error:
            return translate(error)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Within the block signals interrupt the work once, even if it does not come back from a call of a library."""
    before = {number: signal.signal(number, signals.interrupt_once) for number in signals.SIGNALS}
    stop = signals.listen()
    try:
        yield
    finally:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(on_event: Report, event: Event) -> None:
    """Pass an event on, unless the work was asked to stop."""
    signals.check()
    on_event(event)
