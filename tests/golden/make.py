"""Make `espctl-REVISION.db`: a small database of the newest schema, kept for ever to test later upgrades against.

Run it once per revision: python tests/golden/make.py
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from espctl.store.engine import open_store
from espctl.store.experts import record_dataset, record_expert
from espctl.store.models import REVISIONS, Study, Trial
from espctl.store.records import DatasetRecord, ExpertRecord
from espctl.store.runs import insert_run, sync

CREATED = datetime(2026, 1, 31, 12, tzinfo=UTC)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def request(number: int, method: str) -> dict[str, Any]:
    asked = {"method": method, "method_options": {"beta": 1e-5}, "parametrisation": "pixels", "dataset": "digits"}
    return {
        "id": f"{method}-digits-1-{number:08x}",
        "key": f"{number:064x}",
        "created": CREATED.replace(minute=number).isoformat(),
        "kind": "condense",
        "request": {**asked, "fingerprint": "f" * 64, "ipc": 1, "network": "convnet3", "seed": number, "preset": None},
        "provenance": {"version": "0.1.0", "python": "3.11", "git_commit": "c" * 40, "git_patch_sha256": None},
    }


def finish(folder: Path, document: Mapping[str, Any], accuracy: float) -> None:
    score = {"protocol": "dsa", "protocol_hash": "p" * 16, "network": "convnet3", "device": "cpu", "epochs": 1000}
    for seed in range(2):
        values = {"seed": seed, "accuracy": accuracy, "best_accuracy": accuracy + 0.01, "best_epoch": 900}
        times = {"train_loss": 0.125, "seconds": 1.5, "created": document["created"]}
        write(folder / f"evaluations/dsa.convnet3.s{seed}.json", {**score, **values, **times})
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": {step / 4}}}\n' for step in range(3)))
    write(folder / "labels.json", {"name": f"best-{document['id'][:3]}", "note": "kept", "tags": ["golden"]})
    artifact = {"name": "synthetic", "path": "synthetic.safetensors", "sha256": "a" * 64, "bytes": 4096}
    sizes = {"peak_memory_bytes": 2**31, "stored_numbers": 2560, "budget_numbers": 2560, "artifacts": [artifact]}
    times = {"started": document["created"], "finished": document["created"], "seconds": 12.5}
    write(folder / "outcome.json", {"state": "finished", **times, **sizes, "device": "cpu", "error": None})


def make(database: Path, home: Path) -> None:
    with open_store(database, home) as store:
        for number, method in enumerate(("esp", "mtt")):
            document = request(number, method)
            folder = home / "runs" / document["id"]
            write(folder / "request.json", document)
            finish(folder, document, 0.5 + number / 4)
        sync(store, home / "runs")
        document = request(2, "dm")
        insert_run(store, document, home / "runs" / document["id"])
        record_dataset(
            store, DatasetRecord("digits", "f" * 64, 1, 16, 16, 10, 1437, 360, "data/digits.safetensors", CREATED)
        )
        path = "experts/digits/expert-0000.safetensors"
        sizes = {"number": 0, "epochs": 50, "parameters": 320_010, "dtype": "float32", "bytes": 65_282_040}
        facts = {"accuracy": 0.975, "created": CREATED, "seconds": 60.0, "sha256": "e" * 64, "path": path}
        with store.write() as session:
            kept = {"request": {"trials": 2}, "storage": "studies/beta.journal", "created": CREATED}
            session.add(study := Study(name="beta", dataset="digits", method="esp", ipc=1, **kept))
            session.flush()
            ran = "esp-digits-1-00000000"
            session.add(Trial(study_id=study.id, number=0, run_id=ran, state="finished", value=0.5))
            session.add(Trial(study_id=study.id, number=1, run_id=None, state="failed", value=None))
        record_expert(store, ExpertRecord("digits", "f" * 64, "convnet3", "abcdef123456", **sizes, **facts))  # type: ignore[arg-type]
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # one file
        connection.execute("VACUUM")


if __name__ == "__main__":
    golden = Path(__file__).with_name(f"espctl-{REVISIONS[-1]}.db")
    if golden.exists():
        sys.exit(f"{golden} exists: a golden database is never made anew")
    with tempfile.TemporaryDirectory() as folder:
        make(golden, Path(folder))
