"""Independent pieces of work, one after another or in several processes, with one stream of events to the caller."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

from esp.errors import EspError
from espctl.errors import Interrupted, translate
from espctl.jobs import signals

T = TypeVar("T")
R = TypeVar("R")
Event = dict[str, Any]
Report = Callable[[Event], None]

_events: Any = None


def run_all(work: Callable[[T, Report], R], items: Sequence[T], jobs: int, on_event: Report) -> Iterator[tuple[T, R]]:
    """Yield each item with its result as it is done.

    Args:
        work: a module-level function of an item and a function that reports events; all of them cross processes.
        items: what to do; with one job in order, else in any order.
        jobs: processes; 1 works in this one.
        on_event: called in this process with every event.

    Raises:
        whatever `work` raised first; work that had not begun is dropped.
    """
    if jobs <= 1 or len(items) <= 1:
        for item in items:
            yield item, work(item, partial(_report, on_event))
        return
    context = multiprocessing.get_context("spawn")
    events = context.SimpleQueue()  # what was put is there: an item's events arrive before its result does
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(jobs, len(items)), context, _begin, (events,)) as pool:
        with signals.held():  # workers start with signals held back, and take them only while they work
            futures = {pool.submit(_call, work, item): item for item in items}
        try:
            yield from _collect(futures, events, on_event)
        except BaseException:
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()  # what it works on is saved; the pool would wait for its end
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collect(futures: dict[Future[R], T], events: Any, on_event: Report) -> Iterator[tuple[T, R]]:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        _deliver(events, on_event)
        for future in done:
            yield futures[future], future.result()


def _deliver(events: Any, on_event: Report) -> None:
    """Hand every event that has arrived to the caller."""
    while not events.empty():
        on_event(events.get())


def _begin(events: Any) -> None:
    global _events
    _events = events
    for number in signals.SIGNALS:
        signal.signal(number, signals.interrupt_once)
    signals.listen()


def _call(work: Callable[[T, Report], R], item: T) -> R:
    if signal.getsignal(signal.SIGTERM) is signals.ignore:  # an item that was on its way when the work was stopped
        raise Interrupted
    try:
        with signals.stoppable():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
            return work(item, partial(_report, _events.put))
    except KeyboardInterrupt as error:  # a worker must end with an exception that travels
        raise Interrupted from error
    except Exception as error:  # as a sentence, for its traceback does not travel
        if isinstance(error, EspError):
            raise
        raise translate(error) from error
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)


def _report(on_event: Report, event: Event) -> None:
    """Pass an event on, unless the work was asked to stop."""
    signals.check()
    on_event(event)
