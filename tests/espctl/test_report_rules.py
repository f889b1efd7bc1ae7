"""What may stand beside a published number, and what counts as scored already."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from esp.evaluation import protocol
from espctl.jobs.compute import Compute
from espctl.services.condense import Request, prepare
from espctl.services.evaluate import Item
from espctl.services.project import Project
from espctl.services.reporting.report import comparable
from espctl.store.records import EvaluationRecord, RunRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = RunRecord(
    id="dm-cifar10-1-0", key="k", kind="condense", method="dm", dataset="cifar10", fingerprint="f", ipc=1,
    network="convnet3", parametrisation="pixels", seed=0, preset="default", state="finished", created=NOW, started=NOW,
    finished=NOW, seconds=1.0, peak_memory_bytes=1, stored_numbers=1, budget_numbers=1, device="cpu", git_commit=None,
    version="0", error=None, folder="runs/dm-cifar10-1-0",
)  # fmt: skip
SCORE = EvaluationRecord(RUN.id, "dsa", "h", "convnet3", 0, 0.5, 0.5, 1, 1, 0.1, 1.0, "cpu", NOW)


def test_a_run_as_published_is_comparable() -> None:
    assert comparable(RUN, SCORE)


@pytest.mark.parametrize(
    ("run", "score"),
    [
        (replace(RUN, preset="custom"), SCORE),
        (replace(RUN, network="convnet3,width=32"), SCORE),
        (RUN, replace(SCORE, network="convnet3,width=32")),
        (RUN, replace(SCORE, protocol="dsa@300")),
    ],
    ids=["options", "matching network", "scored network", "cut protocol"],
)
def test_any_other_is_not(run: RunRecord, score: EvaluationRecord) -> None:
    assert not comparable(run, score)


@pytest.mark.parametrize(
    ("stored", "options", "preset"),
    [
        ("", {}, "paper"),
        ("pixels", {}, "paper"),
        ("pixels", {"steps": "20000"}, "paper"),
        ("pixels", {"steps": "7"}, "custom"),
        ("latent", {}, "custom"),
        ("multiformation,factor=4", {}, "custom"),
    ],
)
def test_whatever_is_not_the_methods_own_is_custom(
    tmp_path: Path, stored: str, options: dict[str, str], preset: str
) -> None:
    project = Project.open({"home": tmp_path, "condense.method": "dm", "condense.network": "convnet3,width=4"})
    prepared = prepare(project, Request("digits", 1, options, stored))
    assert prepared.described["request"]["preset"] == preset


def test_a_protocol_that_changed_under_its_name_is_scored_again() -> None:
    known = protocol("dsa")
    changed = replace(known, recipe=replace(known.recipe, lr=0.02))
    assert changed.name == known.name

    def place(which: object) -> Path:
        return Item("r", Path("r"), "digits", Path("c"), "convnet3", which, 0, Compute("cpu", 1, 1, False), 1).path  # type: ignore[arg-type]

    assert place(known) != place(changed)
    assert place(known) == place(protocol("dsa"))
