"""An interrupt is an interrupt, whatever a library makes of it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest
import torch

from espctl.errors import Interrupted
from espctl.jobs import pool, signals


class Storage:
    """A sequence whose items are asked by C code, at which moment the signal arrives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> float:
        os.kill(os.getpid(), self.number)
        return 0.0


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_what_torch_makes_of_an_interrupt_is_an_interrupt(number: int) -> None:
    before = [signal.getsignal(one) for one in signals.SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, signals.stoppable():
        torch.tensor(Storage(number))
    assert isinstance(caught.value.__cause__, ValueError), (
        "torch has learnt to pass it on: the test needs another place"
    )
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before


def test_an_interrupt_that_was_dropped_is_raised_at_the_next_event() -> None:
    def work(item: int, report: pool.Report) -> int:
        with contextlib.suppress(KeyboardInterrupt):  # as a callback of C code does
            os.kill(os.getpid(), signal.SIGINT)
        report({"item": item})
        return item

    heard: list[Any] = []
    with pytest.raises(KeyboardInterrupt), signals.stoppable():
        list(pool.run_all(work, [1, 2], 1, heard.append))
    assert heard == []


class Ends:
    """An object at whose end the signal arrives, where nothing can be raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        len(())  # the instruction before which the signal is handled


def test_an_interrupt_in_a_destructor_is_raised_behind_it(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        Ends()
        time.sleep(20)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), signals.stoppable():
        work()
    assert time.monotonic() - begun < 10
    assert capfd.readouterr().err == ""


def test_the_next_block_knows_nothing_of_an_earlier_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), signals.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    with signals.stoppable():
        signals.check()
    with pytest.raises(ValueError, match="of its own"), signals.stoppable():
        raise ValueError("of its own")


def test_work_says_how_to_go_on_whatever_a_library_made_of_the_interrupt() -> None:
    for of_the_outer, hint in (("", "inner"), ("outer", "outer")):
        for stop in (lambda: os.kill(os.getpid(), signal.SIGINT), lambda: torch.tensor(Storage(signal.SIGINT))):
            with pytest.raises(Interrupted) as caught, signals.stoppable(of_the_outer), signals.stoppable("inner"):
                stop()
            assert caught.value.hint == hint


def test_blocks_may_be_nested() -> None:
    with pytest.raises(KeyboardInterrupt), signals.stoppable(), signals.stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    with signals.stoppable():
        with signals.stoppable():
            pass
        assert signal.getsignal(signal.SIGTERM) is signals.interrupt
    assert signal.getsignal(signal.SIGTERM) is not signals.interrupt
