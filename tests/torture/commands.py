"""The commands that are tortured, on jobs of a second, and the projects that they are given."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from espctl.store import migrate

from .programs import Server

SETTINGS = """
[compute]
device = "cpu"
threads = 1
compile = "off"
checkpoint_every = 0.0001
[experts]
count = 2
epochs = 3
network = "convnet3,width=4"
[condense]
network = "convnet3,width=4"
[evaluate]
network = "convnet3,width=4"
seeds = 2
"""
ESP = "condense --dataset digits --ipc 1 --method esp --set real_batch=8 --set segment=2 --set start_max=1"


@dataclass(frozen=True)
class Command:
    """A command, and the project that it is given.

    Attributes:
        already: what it says where it was done before and has nothing left to do.
        tidy: whether `gc` may come between a crash and going on; not where the trash is what it is about.
    """

    words: str
    state: str
    already: str = "(?!)"
    tidy: bool = True


COMMANDS = {
    "experts build": Command("experts build --dataset digits", "bare"),
    "condense": Command(f"{ESP} --set steps=10 --set restart=4 -P latent,decoders=2 --seed 5", "experts"),
    "evaluate": Command("evaluate {run} --epochs 2", "condensed"),
    "tune": Command(
        "tune -d digits --ipc 1 -m dm --set steps=4 --set real_batch=8 --epochs 1 --trials 2 --jobs 1", "experts"
    ),
    "compress": Command("compress {run} --bits 4", "condensed"),
    "runs tag": Command("runs tag {run} good", "condensed"),
    "runs rm": Command("runs rm {run}", "condensed", "there is no run", tidy=False),
    "runs restore": Command(
        "runs restore {run}", "removed", "there is no removed run|there is a run .* again", tidy=False
    ),
    "runs gc": Command("runs gc --yes", "littered"),
    "runs export": Command("runs export --all --with-experts -o home/bundle.tar.gz", "condensed", "exists already"),
    "runs import": Command("runs import {bundle}", "bare"),
    "db upgrade": Command("db upgrade", "older"),
    "db rebuild": Command("db upgrade", "lost"),
}


class Homes:
    """Prepared projects: each is made when it is first wanted, and copied for every case.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._server = folder, server
        self._steps: dict[str, tuple[str, Callable[[Path], None]]] = {
            "experts": ("bare", lambda home: self._do(home, "experts build --dataset digits")),
            "condensed": ("experts", self._condense),
            "removed": ("condensed", lambda home: self._do(home, f"runs rm {self.run}")),
            "littered": ("removed", self._litter),
            "older": ("condensed", _older),
            "lost": ("condensed", _lose),
        }

    def copy(self, state: str, folder: Path) -> Path:
        """A project of its own in an empty folder."""
        home = folder / "home"
        shutil.copytree(self.path(state), home)
        return home

    def words(self, command: Command) -> str:
        """The command line."""
        if "{" not in command.words:
            return command.words
        return command.words.format(run=self.run, bundle=self._folder / "bundle.tar.gz")

    @property
    def run(self) -> str:
        """The condensed run."""
        [run] = (self.path("condensed") / "runs").glob("esp-*")
        return run.name

    def path(self, state: str) -> Path:
        """The prepared project of a state; made when missing."""
        home = self._folder / state / "home"
        if not home.exists():
            self._make(state, home)
        return home

    def _make(self, state: str, home: Path) -> None:
        if state == "bare":
            home.mkdir(parents=True)
            (home / "espctl.toml").write_text(SETTINGS)
            return
        before, step = self._steps[state]
        shutil.copytree(self.path(before), home)
        step(home)

    def _condense(self, home: Path) -> None:
        self._do(home, f"{ESP} --set steps=5")
        [run] = (home / "runs").glob("esp-*")
        self._do(home, f"evaluate {run.name} --epochs 1 --seeds 1 --no-baseline")
        self._do(home, f"runs note {run.name} kept")
        self._do(home, f"runs tag {run.name} first")
        self._do(home, f"runs export --all --with-experts -o {self._folder / 'bundle.tar.gz'}")

    def _litter(self, home: Path) -> None:
        """What killed processes leave, long ago."""
        self._do(home, f"{ESP} --set steps=3 --seed 7")
        [run] = (home / "runs").glob("esp-*")
        for path in (run / ".outcome.json.x.tmp", home / "runs/.import-x/runs/y/z", home / "data/.d.x.tmp"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        (run / "checkpoint.safetensors").write_bytes(b"left")
        age(home)

    def _do(self, home: Path, words: str) -> None:
        done = self._server.run(home, words)
        assert done.code == 0, (words, done)


def age(home: Path) -> None:
    """Make everything an hour old, so that it is nobody's work any more."""
    for path in [home, *home.rglob("*")]:
        hour = time.time() - 3600
        os.utime(path, (hour, hour), follow_symlinks=False)


def _older(home: Path) -> None:
    migrate.downgrade(home / "espctl.db", "0001")
    with closing(sqlite3.connect(home / "espctl.db")) as raw:
        raw.execute("PRAGMA journal_mode = WAL")


def _lose(home: Path) -> None:
    for path in home.glob("espctl.db*"):
        path.unlink()
