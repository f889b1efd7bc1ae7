"""What the store returns: plain frozen values, detached from the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One condensation. Times are UTC, `seconds` is wall time, `folder` is relative to the project's home.

    `name` and `note` are what somebody called it and wrote about it.
    """

    id: str
    key: str
    kind: str
    method: str
    dataset: str
    fingerprint: str | None
    ipc: int
    network: str | None
    parametrisation: str | None
    seed: int
    preset: str | None
    state: str
    created: datetime
    started: datetime | None
    finished: datetime | None
    seconds: float | None
    peak_memory_bytes: int | None
    stored_numbers: int | None
    budget_numbers: int | None
    device: str | None
    git_commit: str | None
    version: str | None
    error: str | None
    folder: str
    name: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """What people put on a run."""

    name: str | None = None
    note: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One network trained on a run's synthetic set. Accuracies are fractions of the test set."""

    run_id: str
    protocol: str
    protocol_hash: str
    network: str
    seed: int
    accuracy: float
    best_accuracy: float | None
    best_epoch: int | None
    epochs: int | None
    train_loss: float | None
    seconds: float | None
    device: str | None
    created: datetime


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A file that a run made; `path` as the run's outcome gives it."""

    run_id: str
    name: str
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RunDetail:
    """A run with all that hangs on it, except its metrics."""

    run: RunRecord
    request: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    evaluations: tuple[EvaluationRecord, ...]
    artifacts: tuple[ArtifactRecord, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert trajectory. `path` is relative to the project's home, `accuracy` that of its last epoch."""

    dataset: str
    fingerprint: str
    network: str
    recipe_hash: str
    number: int
    epochs: int
    parameters: int
    dtype: str
    path: str
    sha256: str
    bytes: int
    accuracy: float | None
    created: datetime
    seconds: float | None


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A converted data set: image shape, and how many classes, training and test images it has."""

    name: str
    fingerprint: str
    channels: int
    height: int
    width: int
    classes: int
    train: int
    test: int
    path: str
    created: datetime


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a pass over the run folders did, by run id; `unreadable` pairs a folder's name with the reason."""

    added: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A search for good options; `storage` is relative to the project's home, `request` is the study's plan."""

    name: str
    dataset: str
    method: str
    ipc: int
    request: Mapping[str, Any]
    storage: str
    created: datetime


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One choice of options; `value` is an accuracy on held-out training images, never on the test set."""

    number: int
    run_id: str | None
    state: str
    value: float | None
