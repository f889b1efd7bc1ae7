"""(f) Start-up, and the commands that read a database of 100,000 runs and ten million metric rows."""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from sqlalchemy import insert, text

from bench.measure import Row, plain_row, row_of
from bench.setting import Size
from espctl.store.engine import open_store
from espctl.store.models import Evaluation, Run

METHODS = ("random", "herding", "dc", "dsa", "dm", "cafe", "mtt", "idc", "kfs", "esp")
SETS = ("cifar10", "cifar100", "svhn", "tinyimagenet", "digits")


def run(size: Size, device: torch.device) -> list[Row]:
    """The rows of this part."""
    runs, metrics = (100_000, 100) if size.name != "rehearsal" else (500, 10)
    with tempfile.TemporaryDirectory() as name:
        large, small = Path(name, "large"), Path(name, "small")
        _fill(large, runs, metrics)
        _fill(small, runs // 100, metrics)
        held = f"{runs:,} runs, {runs * metrics:,} metric rows, {runs:,} scores"
        rows = [plain_row("start", "espctl --help", "s", _seconds(small, "--help"), 0.2, "a new process each time")]
        for words in (
            ("runs", "ls"), ("runs", "ls", "--method", "esp", "--dataset", "cifar10"), ("runs", "show", "run-000042"),
            ("report", "table1", "-d", "cifar10", "--ipc", "1", "--protocol", "dsa"),
        ):  # fmt: skip
            here, there = _seconds(large, *words), _seconds(small, *words)
            what = "espctl " + " ".join(words)
            rows.append(plain_row("database", what, "s", here, 0.333, f"{held}; a new process each time"))
            pairs = list(zip(here, there, strict=True))
            rows.append(row_of("database", what, "with a hundredth of the runs", "s", pairs, None, held))
    return rows


def _seconds(home: Path, *words: str) -> list[float]:
    """Seconds of a command in new processes, the first of which does not count."""
    found = []
    command = [sys.executable, "-m", "espctl", *words]
    command += [] if words == ("--help",) else ["--home", str(home)]
    for _ in range(6):
        begun = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        found.append(time.perf_counter() - begun)
    return found[1:]


def _fill(home: Path, runs: int, metrics: int) -> None:
    """A database of made-up runs, each with a score and `metrics` metric rows."""
    home.mkdir()
    store = open_store(home / "espctl.db")
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    for block in _blocks(runs, 5_000):
        with store.write() as session:
            session.execute(insert(Run), [_run_row(number, begin) for number in block])
            session.execute(insert(Evaluation), [_score_row(number, begin) for number in block])
    with store.write() as session:
        session.execute(
            text(
                "INSERT INTO metrics (run_id, name, step, value) "
                "WITH RECURSIVE steps(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM steps WHERE n < :count) "
                "SELECT id, 'loss', n, 1.0 / n FROM runs CROSS JOIN steps ORDER BY id, n"
            ),
            {"count": metrics},
        )


def _blocks(count: int, size: int) -> list[range]:
    return [range(first, min(count, first + size)) for first in range(0, count, size)]


def _run_row(number: int, begin: datetime.datetime) -> dict[str, object]:
    method, dataset = METHODS[number % 10], SETS[number // 10 % 5]
    made = begin + datetime.timedelta(seconds=number)
    return {
        "id": f"run-{number:06d}", "key": f"{number:064d}", "kind": "condense", "method": method, "dataset": dataset,
        "fingerprint": "f", "ipc": (1, 10, 50)[number // 50 % 3], "network": "convnet3", "parametrisation": "pixels",
        "seed": number // 150, "preset": "paper", "state": "finished", "created": made, "started": made,
        "finished": made, "seconds": 1.0, "peak_memory_bytes": 1, "stored_numbers": 1, "budget_numbers": 1,
        "device": "cpu", "git_commit": "0", "version": "0", "error": None, "folder": f"runs/run-{number:06d}",
        "request": {"request": {"method": method, "changed_options": {}}}, "outcome": {"state": "finished"},
    }  # fmt: skip


def _score_row(number: int, begin: datetime.datetime) -> dict[str, object]:
    return {
        "run_id": f"run-{number:06d}", "protocol": "dsa", "protocol_hash": "h", "network": "convnet3", "seed": 0,
        "accuracy": 0.5, "best_accuracy": 0.5, "best_epoch": 1, "epochs": 1, "train_loss": 1.0, "seconds": 1.0,
        "device": "cpu", "created": begin,
    }  # fmt: skip
