"""Ctrl-C and SIGTERM, heard wherever they arrive.

Python raises KeyboardInterrupt between any two of its instructions. Where a library's C code called that Python code,
it may make another exception of it, or drop it. So that an interrupt was heard is remembered here: within `stoppable`
an exception that follows one is taken for it, and `check`, called at every step of long work, raises it once more.
One that ended a destructor, which can raise nothing, is raised again in what the destructor interrupted. Work that can
be gone on with says how at its own `stoppable`, which is the one place that turns an interrupt into that sentence.

Nothing is raised while one call of a library goes on, and the decomposition of a large matrix takes minutes. Then a
thread hears of the signal, has saved what there is, and ends the process: clusters kill what is still there soon after.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from espctl.errors import Interrupted, exit_code

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 2.5
"""Seconds that a call of a library has to come to its end after a signal."""
_pending = False
_savers: list[Callable[[], None]] = []
_hints: list[str] = []


@contextmanager
def stoppable(hint: str = "") -> Iterator[None]:
    """Within the block SIGTERM interrupts like Ctrl-C, so that unfinished work is saved. Blocks may be nested.

    Args:
        hint: how to go on with what the block does. An outer block's counts before an inner one's.

    Raises:
        Interrupted: with the hint, where one is given.
        KeyboardInterrupt: where none is. Either also in place of an exception that a library made of an interrupt.
    """
    global _pending
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = before[signal.SIGTERM] in (interrupt, interrupt_once, ignore)
    outermost = not ours and threading.current_thread() is threading.main_thread()
    stop: Callable[[], object] = list
    report = sys.unraisablehook
    if outermost:
        _pending = False
        for number in SIGNALS:
            signal.signal(number, interrupt)
        stop = listen()
        report, sys.unraisablehook = sys.unraisablehook, _raise_again
    told = [hint] if hint else []
    _hints.extend(told)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        as_it_is = isinstance(error, (Interrupted, KeyboardInterrupt))
        if not as_it_is and not _pending:
            raise
        if hint:
            raise Interrupted(hint) from error
        if as_it_is:
            raise
        raise KeyboardInterrupt from error
    finally:
        del _hints[len(_hints) - len(told) :]
        if outermost:
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = report
            stop()


@contextmanager
def saving(save: Callable[[], None]) -> Iterator[None]:
    """Within the block `save` is called, by another thread, if a signal finds this one in a call that does not end."""
    _savers.append(save)
    try:
        yield
    finally:
        _savers.remove(save)


def listen() -> Callable[[], object]:
    """Begin to end this process after `GRACE` if a signal is not heard by then; returns what ends the listening."""
    here, there = os.pipe()
    os.set_blocking(there, False)
    before = signal.set_wakeup_fd(there, warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_watch, args=(here, over), daemon=True).start()

    def stop() -> None:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(there)  # which ends the thread

    return stop


def _watch(pipe: int, over: threading.Event) -> None:
    """Read the signals that arrive, until the other end is closed; leave when one of them is not heard in time."""
    with open(pipe, "rb", buffering=0) as file:
        while numbers := file.read(1):
            if numbers[0] in SIGNALS and not over.wait(GRACE) and not _pending:
                _leave()


def _leave() -> None:
    """End the process from a thread beside the one that does not come back."""
    for save in reversed(_savers):
        with suppress(Exception):
            save()
    error = Interrupted(*_hints[:1])
    with suppress(Exception):
        sys.stderr.write(f"\nerror: {error.message}\nhint: {error.hint}\n")
        sys.stderr.flush()
    os._exit(exit_code(error))


def _raise_again(ended: sys.UnraisableHookArgs) -> None:
    """What Python does with an exception of a destructor: report it, but an interrupt is sent once more."""
    if issubclass(ended.exc_type, KeyboardInterrupt):
        again = threading.Timer(0.05, _send_again)  # in here it would be lost like the first
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(ended)


def _send_again() -> None:
    if signal.getsignal(signal.SIGINT) is interrupt:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def check() -> None:
    """Raise KeyboardInterrupt if an interrupt was heard since the outermost `stoppable` began, and got lost."""
    if _pending:
        raise KeyboardInterrupt


def interrupt(*_: object) -> None:
    """Signal handler: interrupt what is under way."""
    global _pending
    _pending = True
    raise KeyboardInterrupt


def interrupt_once(*_: object) -> None:
    """Signal handler of a worker, which hears of one Ctrl-C from the terminal and from its parent.

    The second must not stop it from saving.
    """
    for number in SIGNALS:
        signal.signal(number, ignore)
    interrupt()


def ignore(*_: object) -> None:
    """Do nothing. Unlike SIG_IGN, it does not make Python complain of a signal that arrived at the same moment."""


@contextmanager
def held() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM wait; processes that it starts begin life with both held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
