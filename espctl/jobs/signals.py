"""Ctrl-C and SIGTERM, heard wherever they arrive.

Python raises KeyboardInterrupt between any two of its instructions. Where a library's C code called that Python code,
it may make another exception of it, or drop it. So that an interrupt was heard is remembered here: within `stoppable`
an exception that follows one is taken for it, and `check`, called at every step of long work, raises it once more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from espctl.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_pending = False


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block SIGTERM interrupts like Ctrl-C, so that unfinished work is saved. Blocks may be nested.

    Raises:
        KeyboardInterrupt: also in place of an exception that a library made of it.
    """
    global _pending
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = before[signal.SIGTERM] in (interrupt, interrupt_once, ignore)
    outermost = not ours and threading.current_thread() is threading.main_thread()
    if outermost:
        _pending = False
        for number in SIGNALS:
            signal.signal(number, interrupt)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if _pending:
            raise KeyboardInterrupt from error
        raise
    finally:
        if outermost:
            for number, handler in before.items():
                signal.signal(number, handler)


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
