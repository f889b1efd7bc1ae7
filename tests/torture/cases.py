"""One case of torture: a command, a moment, and what happens then; and whether the project survives it.

A case is written as words that are typed to repeat it:

    condense:SIGKILL:17         a signal at the 17th change of a file, or within it
    condense:SIGTERM:0.4312     a signal after that part of the time that the command takes undisturbed
    tune:ENOSPC:17              the 17th change of a file fails
    tune:EROFS:17+              that one and every later one
"""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import invariants
from .commands import COMMANDS, Command, Homes, age
from .programs import FAIL, SIGNAL, Done, Fault, Server

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}
_OURS = re.compile(r"Traceback|Exception ignored|unexpected |defect of espctl|Warning:|Error: ")
_LINE = re.compile(r"espctl ([^;]+)")
_GOLDEN = 0.6180339887498949  # its multiples spread evenly however many there are


@dataclass(frozen=True)
class Case:
    """What happens to which command, and when: at a change of a file (from 1), or at a part of its time."""

    command: str
    what: str
    at: int | float
    stays: bool = False

    def __str__(self) -> str:
        at = f"{self.at:.4f}" if self.timed else f"{self.at}"
        return f"{self.command}:{self.what}:{at}{'+' if self.stays else ''}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case of a text."""
        command, what, at = text.split(":")
        if command not in COMMANDS or what not in {**SIGNALS, **ERRORS}:
            raise ValueError(text)
        return cls(command, what, float(at) if "." in at else int(at.rstrip("+")), at.endswith("+"))

    @property
    def timed(self) -> bool:
        """Whether the moment is a part of the time."""
        return isinstance(self.at, float)

    @property
    def killed(self) -> bool:
        """Whether it is a signal, and no failed write."""
        return self.what in SIGNALS


@dataclass(frozen=True)
class Outcome:
    """What came of a case: where it was hit, and what is wrong; nothing, if it survived."""

    case: Case
    hit: str
    wrong: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Undisturbed:
    """A command to which nothing happens: its time, the changes of files it makes, and what it leaves."""

    seconds: float
    changes: tuple[int, int]
    content: dict[str, str]

    def count(self, what: str) -> int:
        """How many changes of files can be hit."""
        return self.changes[1 if what == "ENOSPC" else 0]


class Bench:
    """Prepared projects and a server; what a worker needs to try cases.

    Args:
        folder: an empty one.
        homes: prepared projects.
        known: name of a command -> what it does undisturbed; filled as it is needed.
    """

    def __init__(self, folder: Path, server: Server, homes: Homes, known: dict[str, Undisturbed]) -> None:
        self._folder, self._server, self._homes, self._known = folder, server, homes, known
        self._number = 0

    def undisturbed(self, name: str) -> Undisturbed:
        """What a command does when nothing happens to it."""
        if name not in self._known:
            command = COMMANDS[name]
            home = self._copy(command)
            done = self._server.run(home, self._homes.words(command))
            assert done.code == 0, (name, done)
            assert not (wrong := invariants.broken(home)), (name, wrong)
            self._known[name] = Undisturbed(done.seconds, done.changes, invariants.content(home))
            shutil.rmtree(home.parent)
        return self._known[name]

    def run(self, case: Case) -> Outcome:
        """Try a case."""
        begun, command = time.monotonic(), COMMANDS[case.command]
        calm = self.undisturbed(case.command)
        trial = _Trial(case, command, self._homes.words(command), self._copy(command), self._server, calm)
        try:
            wrong = tuple(trial.carry_out())
        except Exception as error:
            wrong = (f"the harness failed: {type(error).__name__}: {error}",)
        hit = f"{trial.done.fired} (code {trial.done.code})" if trial.done else ""
        if not wrong:
            shutil.rmtree(trial.home.parent)
        return Outcome(case, hit, wrong, time.monotonic() - begun)

    def _copy(self, command: Command) -> Path:
        self._number += 1
        folder = self._folder / f"case-{self._number}"
        folder.mkdir(parents=True)
        return self._homes.copy(command.state, folder)


@dataclass
class _Trial:
    """A case under way."""

    case: Case
    command: Command
    words: str
    home: Path
    server: Server
    calm: Undisturbed
    done: Done | None = None

    def carry_out(self) -> Iterator[str]:
        """Do it, and yield what is wrong."""
        before = invariants.content(self.home)
        self.done = done = self._disturb()
        yield from (f"after it: {problem}" for problem in invariants.broken(self.home))
        yield from _ended_as_signalled(done, self, before) if self.case.killed else _ended_as_failed(done)
        if (
            self.command.tidy and random.Random(str(self.case)).random() < 0.5
        ):  # somebody tidies up before the work goes on
            yield from self._collect()
            yield from (f"after gc: {problem}" for problem in invariants.broken(self.home))
        yield from self._go_on(done)
        yield from self._compare()

    def _disturb(self) -> Done:
        case = self.case
        if case.timed:
            running = self.server.start(self.home, self.words)
            time.sleep(case.at * self.calm.seconds)
            running.kill(SIGNALS[case.what])
            return running.wait()
        kind, value = (SIGNAL, SIGNALS[case.what]) if case.killed else (FAIL, ERRORS[case.what])
        return self.server.run(self.home, self.words, Fault(kind, int(case.at), value, case.stays))

    @cached_property
    def _already(self) -> re.Pattern[str]:
        return re.compile(self.command.already)

    def _go_on(self, done: Done) -> Iterator[str]:
        """What the message says, or else the same command again; and what a refusal says, until it is done."""
        if done.code == 130 and (advised := self._advised(done)):
            if (done := self.server.run(self.home, advised)).code != 0:
                yield f"it does not go on as it says: {advised}: {done}"
            return
        for _ in range(3):
            done = self.server.run(self.home, self.words)
            if done.code == 0 or self._already.search(done.err):
                return
            yield from _complaint(done)
            if not (advised := self._advised(done)) or self.server.run(self.home, advised).code != 0:
                break
        yield f"it does not go on: {done}"

    def _advised(self, done: Done) -> str | None:
        hints = [line for line in done.err.splitlines() if line.startswith("hint: ")]
        found = _LINE.search(hints[-1]) if hints else None
        return found[1].strip() if found else None

    def _collect(self) -> Iterator[str]:
        """List what gc would remove, and have it removed; what it lists must go."""
        age(self.home)
        listed, removed = (self.server.run(self.home, f"runs gc --json {how}") for how in ("--dry-run", "--yes"))
        for done in (listed, removed):
            if done.code != 0:
                yield f"gc fails: {done}"
                return
        if (first := _paths(listed)) != _paths(removed):
            yield f"gc removed other things than it listed: {first}, {_paths(removed)}"

    def _compare(self) -> Iterator[str]:
        """The project against the one of the undisturbed command; what is beyond it must go with gc."""
        yield from invariants.broken(self.home)
        found = invariants.content(self.home)
        yield from invariants.differences(found, self.calm.content)
        yield from self._collect()
        left = {name for name in invariants.content(self.home) if not name.startswith("table ")}
        yield from (f"gc leaves {name}" for name in sorted(left - self.calm.content.keys()))
        checked = self.server.run(self.home, "verify --all")
        if checked.code != 0:
            yield f"verify finds: {checked.out}{checked.err}"


def _paths(done: Done) -> list[Any]:
    return sorted(item["path"] for item in json.loads(done.out)["items"])


def _ended_as_signalled(done: Done, trial: _Trial, before: dict[str, str]) -> Iterator[str]:
    number = SIGNALS[trial.case.what]
    if number == signal.SIGKILL:
        if done.code not in (-number, 0):
            yield f"killed, it ended with {done.code}: {done.err}"
    elif done.code == 130:
        yield from _complaint(done)
        if "error: interrupted" not in done.err:
            yield f"stopped, it says {done.err}"
    elif done.code == -number:  # before its first instruction, or after its last
        now = invariants.content(trial.home)
        if now != before and invariants.differences(now, trial.calm.content):
            yield f"it died of the signal in the middle: {done.err}"
    elif done.code != 0:
        yield f"stopped, it ended with {done.code}: {done.err}"
    if _OURS.search(done.err):
        yield f"stopped, it says {done.err}"


def _ended_as_failed(done: Done) -> Iterator[str]:
    """A write that did not matter may fail unnoticed; else there is one sentence and what to do."""
    if done.code == 1:
        yield from _complaint(done)
    elif done.code != 0:
        yield f"it ended with {done.code}: {done.err}"
    if _OURS.search(done.err):
        yield f"it says {done.err}"


def _complaint(done: Done) -> Iterator[str]:
    """An error in one sentence and a hint."""
    lines = done.err.splitlines()
    shaped = len(lines) > 1 and lines[-2].startswith("error: ") and lines[-1].startswith("hint: ")
    if not shaped or done.err.count("error: ") > 1 or _OURS.search(done.err):
        yield f"its message is not one sentence and a hint: {done.err}"


def kills(count: int, seed: int, bench: Bench, counted: bool = True) -> Iterator[Case]:
    """So many signals at random moments: half of them at a change of a file, else at a part of the time."""
    names = list(COMMANDS)
    for number in range(count):
        chance, name = random.Random(f"kill {seed} {number}"), names[number % len(names)]
        what = chance.choices(list(SIGNALS), (5, 4, 1))[0]
        at: int | float = chance.uniform(0, 1.05)
        if counted and chance.random() < 0.5:
            at = chance.randint(1, bench.undisturbed(name).count(what))
        yield Case(name, what, at)


def writes(count: int, seed: int, bench: Bench) -> Iterator[Case]:
    """So many failed writes, spread evenly over all that the commands make; 0 for each one in turn."""
    if count == 0:
        for name in COMMANDS:
            for what in ERRORS:
                for at in range(1, bench.undisturbed(name).count(what) + 1):
                    yield Case(name, what, at, stays=(at + seed) % 2 == 0)
        return
    names, kinds = list(COMMANDS), list(ERRORS)
    for number in range(count):
        name, turn = names[number % len(names)], number // len(names)
        what = kinds[(turn + number) % len(kinds)]
        share = ((turn + 1) * _GOLDEN + seed * _GOLDEN**2) % 1
        at = 1 + int(share * bench.undisturbed(name).count(what))
        yield Case(name, what, at, stays=random.Random(f"write {seed} {number}").random() < 0.5)
