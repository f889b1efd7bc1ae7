"""(f) Start-up, and the commands that read a database of 100,000 runs and ten million metric rows."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import insert, text

from bench.measure import Row, isolated, plain_row, row_of
from bench.setting import Size
from esp.methods import METHODS
from esp.registry import resolve
from espctl.store.engine import open_store
from espctl.store.models import Evaluation, Run

NAMES = ("random", "herding", "dc", "dsa", "dm", "cafe", "mtt", "idc", "kfs", "esp")
SETS = ("cifar10", "cifar100", "svhn", "tinyimagenet", "digits")
CURVES = ("loss", "dm", "proj", "gradient")
COMMANDS = (
    ("runs", "ls"), ("runs", "ls", "method=esp dataset=cifar10"), ("runs", "show", "esp-000049"),
    ("report", "table1", "-d", "cifar10", "--ipc", "1", "--protocol", "dsa"),
)  # fmt: skip
LONGEST = 1 / 3


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part."""
    runs, steps = (100_000, 25) if size.name != "rehearsal" else (5_000, 5)
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name, "large"), Path(name, "small")
        fill(large, runs, steps)
        fill(small, runs // 100, steps)
        held = f"{runs:,} runs, {runs * steps * len(CURVES):,} metric rows, {runs:,} scores"
        fresh = "a new process each time"
        rows = [plain_row("start", "espctl --help", "s", _started(small, "--help"), 0.2, fresh)]
        rows.append(plain_row("start", "import sqlalchemy.orm", "s", _imports("sqlalchemy.orm"), None, fresh))
        for words in COMMANDS:
            here, there = isolated(_commanded, large, words), isolated(_commanded, small, words)
            what = "espctl " + " ".join(words)
            rows.append(plain_row("database", what, "s", here, LONGEST, f"{held}; start-up left out"))
            pairs = list(zip(here, there, strict=True))
            rows.append(row_of("database", what, "with a hundredth of the runs", "s", pairs, None, held))
            rows.append(plain_row("database", what, "s", _started(large, *words), LONGEST, f"{held}; {fresh}"))
    return rows


def _commanded(home: Path, words: tuple[str, ...]) -> list[float]:
    """Seconds of a command in this process, which has done it before: without imports."""
    from espctl.cli import run as command

    found = []
    for _ in range(6):
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()):
            code = command([*words, "--home", str(home)])
        found.append(time.perf_counter() - begun)
        if code or not printed.getvalue():
            raise RuntimeError(f"espctl {' '.join(words)}: exit code {code}")
    return found[1:]


def _started(home: Path, *words: str) -> list[float]:
    """Seconds of a command in new processes, the first of which does not count."""
    return _processes("-m", "espctl", *words, *([] if words == ("--help",) else ["--home", str(home)]))


def _imports(module: str) -> list[float]:
    return _processes("-c", f"import {module}")


def _processes(*arguments: str) -> list[float]:
    """Seconds of Python with some arguments; byte code is kept as an installation has it, whatever is set here."""
    found = []
    with tempfile.TemporaryDirectory() as kept:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = kept
        for _ in range(6):
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=environment)
            found.append(time.perf_counter() - begun)
    return found[1:]


def fill(home: Path, runs: int, steps: int) -> None:
    """A database of made-up runs, each with a score and `steps` points of four curves. There are no folders."""
    home.mkdir(parents=True)
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    options: dict[str, dict[str, Any]] = {name: asdict(resolve(METHODS, "method", name)()) for name in NAMES}
    with open_store(home / "espctl.db") as store:
        for block in (range(first, min(runs, first + 5_000)) for first in range(0, runs, 5_000)):
            with store.write() as session:
                session.execute(insert(Run), [_run(number, begin, options) for number in block])
                session.execute(insert(Evaluation), [_score(number, begin) for number in block])
        names = " UNION ALL ".join(f"SELECT '{name}' AS name" for name in sorted(CURVES))
        with store.write() as session:
            session.execute(
                text(
                    "INSERT INTO metrics (run_id, name, step, value) "
                    "WITH RECURSIVE steps(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM steps WHERE n < :count), "
                    f"names AS ({names}) "
                    "SELECT id, names.name, n, 1.0 / n FROM runs CROSS JOIN names CROSS JOIN steps ORDER BY id, 2, n"
                ),
                {"count": steps},
            )


def _name(number: int) -> str:
    return f"{NAMES[number % 10]}-{number:06d}"


def _run(number: int, begin: datetime.datetime, options: dict[str, dict[str, Any]]) -> dict[str, object]:
    """A run as it would be entered: every method on every data set, at three sizes, from many seeds."""
    method, made = NAMES[number % 10], begin + datetime.timedelta(seconds=number)
    asked: dict[str, Any] = {
        "method": method, "dataset": SETS[number // 10 % 5], "ipc": (1, 10, 50)[number // 50 % 3],
        "seed": number // 150, "network": "convnet3", "parametrisation": "pixels", "preset": "paper",
        "fingerprint": "f" * 64,
    }  # fmt: skip
    labels = {"preset_base": "paper", "preset_origin": "published", "changed_options": {}}
    inside = {**asked, **labels, "method_options": options[method], "parametrisation_options": {}, "experts": []}
    request = {
        "id": _name(number), "key": f"{number:064d}", "created": made.isoformat(), "kind": "condense",
        "request": inside, "provenance": {"version": "0", "git_commit": "0" * 40, "platform": "made up"},
        "compute": {"device": "cpu", "threads": 1, "compile": False, "chunk": 512},
    }  # fmt: skip
    return {
        **asked, "id": _name(number), "key": f"{number:064d}", "kind": "condense", "state": "finished",
        "created": made, "started": made, "finished": made, "seconds": 1.0, "peak_memory_bytes": 1,
        "stored_numbers": 1, "budget_numbers": 1, "device": "cpu", "git_commit": "0" * 40, "version": "0",
        "error": None, "folder": f"runs/{_name(number)}", "request": request, "outcome": {"state": "finished"},
    }  # fmt: skip


def _score(number: int, begin: datetime.datetime) -> dict[str, object]:
    return {
        "run_id": _name(number), "protocol": "dsa", "protocol_hash": "h", "network": "convnet3", "seed": 0,
        "accuracy": 0.5, "best_accuracy": 0.5, "best_epoch": 1, "epochs": 1, "train_loss": 1.0, "seconds": 1.0,
        "device": "cpu", "created": begin,
    }  # fmt: skip
