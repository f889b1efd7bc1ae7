"""Writers of `together`: each a process that gives random commands to one project, and keeps account of what it did."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espctl import cli

OPERATION_SECONDS = 120
REQUESTS = 12
"""Different runs that are asked for: few, so that several writers ask for one at the same moment."""
SCORE = "--seeds 1 --epochs 1 --no-baseline"
REFUSED = re.compile(
    r"there is no run|there is no removed run|is gone: |was removed by another process|another process is working on"
    r"|the name '.*' is taken|has not ended|there is a run .* again"
    r"|is (queued|running|interrupted)$|nothing has been scored|does not exist$|there is nothing to export"
)
"""What may be said to somebody who works on what another one has just removed, named or begun."""


@dataclass(frozen=True)
class Done:
    """A command that was given: its exit code, and what it printed."""

    words: str
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Account:
    """What a writer did: entries such as {"op": "tag", "run": ..., "tag": ...}; refusals; and what went wrong."""

    number: int
    entries: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    operations: int = 0


def give(home: Path, words: str) -> Done:
    """Give a command to the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([*shlex.split(words), "--home", str(home)])
    return Done(words, code, out.getvalue(), err.getvalue())


class Writer:
    """Gives commands one after another; the seed decides which, and the project what they meet."""

    def __init__(self, home: Path, number: int, seed: int) -> None:
        self._home, self._random = home, random.Random(f"{seed}-{number}")
        self.account = Account(number)
        self._tags: list[tuple[str, str]] = []

    def work(self, operations: int) -> Account:
        """Do so many operations."""
        signal.signal(signal.SIGALRM, _too_long)
        names, weights = zip(*_OPERATIONS, strict=True)
        for number in range(operations):
            [operate] = self._random.choices(names, weights)
            begun = time.monotonic()
            signal.alarm(OPERATION_SECONDS)
            try:
                operate(self, f"w{self.account.number}-{number}")
            except Exception as error:
                self.account.wrong.append(f"{operate.__name__}: {type(error).__name__}: {error}")
            signal.alarm(0)
            self.account.operations += 1
            self.account.slowest = max(self.account.slowest, time.monotonic() - begun)
        return self.account

    def _give(self, words: str, op: str = "", **entry: Any) -> Done | None:
        """Give a command; enter what it did. None when it was refused, as it may be."""
        done = give(self._home, words)
        if done.code == 0:
            if op:
                self.account.entries.append({"op": op, **entry})
            return done
        first = done.err.splitlines()
        message = next((line.removeprefix("error: ") for line in first if line.startswith("error: ")), "")
        if done.code == 1 and REFUSED.search(message):
            self.account.refused += 1
        else:
            self.account.wrong.append(f"{words}: {done.code}: {done.err}{done.out[-500:]}")
        return None

    def _run(self) -> str:
        """Some run that is there, or was a moment ago."""
        found = sorted(path.name for path in (self._home / "runs").glob("random-*"))
        return self._random.choice(found) if found else "random-nothing"

    def condense(self, word: str) -> None:
        again = " --again" if self._random.random() < 0.1 else ""
        seed = self._random.randrange(REQUESTS)
        done = self._give(f"condense -d digits --ipc 1 -m random --seed {seed} --json{again}")
        if done:
            self.account.entries.append({"op": "made", "run": done.json["id"], "created": done.json["created"]})

    def tag(self, word: str) -> None:
        run = self._run()
        if self._give(f"runs tag {run} {word}", "tag", run=run, tag=word):
            self._tags.append((run, word))

    def untag(self, word: str) -> None:
        if self._tags:
            run, tag = self._tags.pop(self._random.randrange(len(self._tags)))
            self._give(f"runs tag {run} --remove {tag}", "untag", run=run, tag=tag)

    def note(self, word: str) -> None:
        run = self._run()
        self._give(f"runs note {run} {word}", "note", run=run, note=word)

    def rename(self, word: str) -> None:
        run, name = self._run(), self._random.choice((word, "best", "favourite"))
        self._give(f"runs rename {run} {name}", "name", run=run, name=name)

    def remove(self, word: str) -> None:
        if done := self._give(f"runs rm {self._run()} --json"):
            self.account.entries += [{"op": "rm", "run": one["run"], "trash": one["trash"]} for one in done.json]

    def restore(self, word: str) -> None:
        removed = sorted(path.name.partition("@")[0] for path in (self._home / "runs/.trash").glob("*@*"))
        if removed:
            run = self._random.choice(removed)
            self._give(f"runs restore {run}", "restore", run=run)

    def collect(self, word: str) -> None:
        how = "--yes" if self._random.random() < 0.05 else "--dry-run"
        done = self._give(f"runs gc {how} --json")
        if done and how == "--yes":
            gone = [Path(item["path"]) for item in done.json["items"] if item["kind"] == "trash"]
            entries = [{"op": "gone", "run": path.name.partition("@")[0], "trash": str(path)} for path in gone]
            self.account.entries += entries

    def evaluate(self, word: str) -> None:
        run = self._run()
        if (self._home / f"runs/{run}/outcome.json").exists():
            self._give(f"evaluate {run} {SCORE} --json", "score", run=run)

    def build(self, word: str) -> None:
        self._give(f"experts build -d digits --count {self._random.randint(1, 3)} --json")

    def export(self, word: str) -> None:
        self._give(f"runs export {self._run()} -o {self._home}/bundles/{word}.tar")

    def take_in(self, word: str) -> None:
        if done := self._give(f"runs import {self._home}/bundles/first.tar --json"):
            self.account.entries.append({"op": "import", "added": done.json["added"]})

    def look(self, word: str) -> None:
        run, word = self._run(), self._random.choice(("best", "w1-3"))
        command = self._random.choice(
            (
                "runs ls --json", f"runs ls tag={word} --json", f"runs show {run} --json", "experts ls --json",
                "query 'select state, count(*) from runs group by state' --json", "report table1 --dataset digits",
                f"runs ls 'name={word} or accuracy>10' --group seed --json", "runs restore", "doctor --fast --json",
            )
        )  # fmt: skip
        self._give(command)

    def check(self, word: str) -> None:
        """What must find nothing wrong, whatever the others do meanwhile."""
        self._give(
            self._random.choice(("db check", "runs sync --json", "db upgrade --json", "db backup", "experts verify"))
        )


def _too_long(*_: object) -> None:
    raise TimeoutError(f"an operation takes longer than {OPERATION_SECONDS} seconds")


_OPERATIONS: tuple[tuple[Callable[[Writer, str], None], int], ...] = (
    (Writer.condense, 16), (Writer.tag, 24), (Writer.untag, 4), (Writer.note, 8), (Writer.rename, 6),
    (Writer.remove, 7), (Writer.restore, 7), (Writer.collect, 3), (Writer.evaluate, 6), (Writer.build, 1),
    (Writer.export, 2), (Writer.take_in, 2), (Writer.look, 10), (Writer.check, 4),
)  # fmt: skip


def watch_renames(counts: dict[str, int]) -> None:
    """Count for the rest of this process every file that is renamed into its place: how often it was made."""

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            target = os.fspath(arguments[1])
            counts[target] = counts.get(target, 0) + 1

    sys.addaudithook(heard)
