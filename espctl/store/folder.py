"""Reading a run folder: its JSON files, checked, as the records that the database keeps.

```
request.json        the resolved request and where it comes from
outcome.json        written last: how the run ended and what it made
evaluations/*.json  one file per trained network
metrics.jsonl       one object per line: {"step": n, name: value, ...}
labels.json         what people put on the run: name, note, tags
```
This module imports no torch, so that listing stays quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from esp.errors import ArtifactError
from espctl.errors import SchemaError
from espctl.store.models import STATES
from espctl.store.records import ArtifactRecord, EvaluationRecord, Labels, RunRecord

FORMAT = 1
"""Of run folders; a request without a format is of the first."""
LABELS = "labels.json"
_PRUNED = "pruned: "  # how the error of such a run began while it was said to have failed
TRIAL_SCORE = "held_out.json"
METRIC_STEPS = 500
_DAMAGED = "restore the file from a copy, or remove the run folder"
_INTEGER_LIMIT = 2**63  # of SQLite
T = TypeVar("T")


@dataclass(frozen=True)
class Contents:
    """A run folder as the database sees it.

    Attributes:
        outcome: None until the run has ended.
        labels: None if there are none.
        trial: study and number of the trial that the run was made for, if any.
    """

    folder: Path
    run: RunRecord
    request: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    artifacts: tuple[ArtifactRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    labels: Labels | None
    trial: tuple[str, int] | None = None


def read(folder: Path, home: Path) -> Contents:
    """Read everything but the metrics.

    Raises:
        ArtifactError: a file is missing, is not JSON, or lacks or misuses a key; or the folder is another run's.
    """
    request = _Document.read(folder / "request.json")
    run = run_record(request.values, folder, home, request.path)
    if run.id != folder.name:
        raise ArtifactError(f"{request.path} is of run {run.id!r}", "rename the folder to the run's id, or remove it")
    evaluations = tuple(_evaluation(run.id, _Document.read(path)) for path in sorted(folder.glob("evaluations/*.json")))
    known = labels(folder)
    run = _replace(run, name=known.name, note=known.note) if known else run
    if not (folder / "outcome.json").exists():
        began = any((folder / name).exists() for name in ("checkpoint.safetensors", "metrics.jsonl"))
        state = "interrupted" if began else "queued"
        return Contents(
            folder, _replace(run, state=state), request.values, None, (), evaluations, known, _trial(folder, request)
        )
    outcome = _Document.read(folder / "outcome.json")
    return Contents(
        folder, _ended(run, outcome), request.values, outcome.values, _artifacts(run.id, outcome), evaluations, known,
        _trial(folder, request),
    )  # fmt: skip


def _trial(folder: Path, request: _Document) -> tuple[str, int] | None:
    """The trial that a run was made for; a repetition of that run has the same request, but no score of a trial."""
    asked = request.inner("request")
    if asked.values.get("study") is None or not (folder / TRIAL_SCORE).is_file():
        return None
    return asked.text("study"), asked.integer("trial")


def run_record(request: Mapping[str, Any], folder: Path, home: Path, source: Path = Path("request.json")) -> RunRecord:
    """The record of a queued run, from the value of its `request.json`.

    Raises:
        ArtifactError: a key is missing or of the wrong type.
    """
    top = _Document(source, request)
    _require_format(top)
    asked, provenance = top.inner("request"), top.inner("provenance", optional=True)
    for name in ("method_options", "parametrisation_options", "changed_options"):
        if name in asked.values:
            asked.inner(name)
    _require_experts(asked)
    return RunRecord(
        id=top.text("id"), key=top.text("key"), kind=top.text("kind"), created=top.moment("created"),
        method=asked.text("method"), dataset=asked.text("dataset"), fingerprint=asked.maybe(asked.text, "fingerprint"),
        ipc=asked.integer("ipc"), network=asked.maybe(asked.text, "network"), seed=asked.integer("seed"),
        parametrisation=asked.maybe(asked.text, "parametrisation"), preset=asked.maybe(asked.text, "preset"),
        version=provenance.maybe(provenance.text, "version"), device=provenance.maybe(provenance.text, "device"),
        git_commit=provenance.maybe(provenance.text, "git_commit"), folder=relative(folder, home), state="queued",
        started=None, finished=None, seconds=None, peak_memory_bytes=None, stored_numbers=None, budget_numbers=None,
        error=None,
    )  # fmt: skip


def _require_format(top: _Document) -> None:
    """Refuse a folder of a later version, which may mean something else by the same words."""
    if (found := top.values.get("format", FORMAT)) != FORMAT:
        source = top.values.get("provenance")
        made = source.get("version") if isinstance(source, Mapping) else None
        raise SchemaError(
            f"{top.path} has format {found!r:.20}, this program reads {FORMAT}",
            f"use the version of espctl that made it{f', {made!s:.40},' if made else ''} or a newer one",
        )


def _require_experts(asked: _Document) -> None:
    """Whoever reads a request relies on the form of its experts."""
    experts = asked.values.get("experts") or []
    if not isinstance(experts, list):
        raise asked.wrong("experts", "a list")
    for item in experts:
        entry = _Document(asked.path, item)
        entry.text("path")
        entry.text("sha256")


def labels(folder: Path) -> Labels | None:
    """What people put on the run of a folder; None when nobody ever did.

    Raises:
        ArtifactError: the file is damaged.
    """
    if not (path := folder / LABELS).exists():
        return None
    file = _Document.read(path)
    tags = file.values.get("tags") or []
    if not isinstance(tags, list) or not all(_is_text(tag) for tag in tags):
        raise file.wrong("tags", "a list of words")
    return Labels(file.maybe(file.text, "name"), file.maybe(file.text, "note"), tuple(sorted(set(tags))))


def evaluation_record(run_id: str, document: Mapping[str, Any], source: Path = Path("evaluation")) -> EvaluationRecord:
    """The record of one trained network, from the value of its file under `evaluations/`.

    Raises:
        ArtifactError: a key is missing or of the wrong type.
    """
    return _evaluation(run_id, _Document(source, document))


def relative(path: Path, home: Path) -> str:
    """`path` from `home`, so that a project can be moved; absolute when it lies elsewhere."""
    path, home = Path(path).absolute(), home.absolute()
    return (path.relative_to(home) if path.is_relative_to(home) else path).as_posix()


def metrics(folder: Path, steps: int = METRIC_STEPS) -> list[tuple[str, int, float]]:
    """(name, step, value) of `metrics.jsonl`, each name thinned evenly to at most `steps`, first and last kept.

    A resumed run repeats the steps after its checkpoint: the later line counts. A line that a crash cut short, and
    numbers that are not finite, are left out.
    """
    series: dict[str, dict[int, float]] = {}
    try:
        with (folder / "metrics.jsonl").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                _add(series, line)
    except FileNotFoundError:
        return []
    return [(name, step, points[step]) for name, points in series.items() for step in _thin(sorted(points), steps)]


def _add(series: dict[str, dict[int, float]], line: str) -> None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return
    step = values.pop("step", None) if isinstance(values, dict) else None
    if not _is_integer(step):
        return
    for name, value in values.items():
        if _is_number(value) and _is_text(name):
            series.setdefault(name, {})[step] = float(value)


def _thin(steps: list[int], count: int) -> list[int]:
    if len(steps) <= count:
        return steps
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _ended(run: RunRecord, outcome: _Document) -> RunRecord:
    state = outcome.text("state")
    if state not in STATES:
        raise ArtifactError(f"{outcome.path}: 'state' cannot be {state!r}", f"known: {', '.join(STATES)}")
    error = outcome.maybe(outcome.text, "error")
    if state == "failed" and (error or "").startswith(_PRUNED):
        state, error = "pruned", (error or "").removeprefix(_PRUNED)
    return _replace(
        run, state=state, started=outcome.maybe(outcome.moment, "started"),
        finished=outcome.maybe(outcome.moment, "finished"), seconds=outcome.maybe(outcome.number, "seconds"),
        peak_memory_bytes=outcome.maybe(outcome.integer, "peak_memory_bytes"),
        stored_numbers=outcome.maybe(outcome.integer, "stored_numbers"),
        budget_numbers=outcome.maybe(outcome.integer, "budget_numbers"),
        device=outcome.maybe(outcome.text, "device") or run.device, error=error,
    )  # fmt: skip


def _evaluation(run_id: str, file: _Document) -> EvaluationRecord:
    return EvaluationRecord(
        run_id=run_id, protocol=file.text("protocol"), protocol_hash=file.text("protocol_hash"),
        network=file.text("network"), seed=file.integer("seed"), accuracy=file.number("accuracy"),
        best_accuracy=file.maybe(file.number, "best_accuracy"), best_epoch=file.maybe(file.integer, "best_epoch"),
        epochs=file.maybe(file.integer, "epochs"), train_loss=file.maybe(file.number, "train_loss"),
        seconds=file.maybe(file.number, "seconds"), device=file.maybe(file.text, "device"),
        created=file.moment("created"),
    )  # fmt: skip


def _artifacts(run_id: str, outcome: _Document) -> tuple[ArtifactRecord, ...]:
    listed = [] if outcome.values.get("artifacts") is None else outcome.values["artifacts"]
    if not isinstance(listed, list):
        raise outcome.wrong("artifacts", "a list")
    found = [_Document(outcome.path, item) for item in listed]
    records = {
        item.text("name"): ArtifactRecord(
            run_id, item.text("name"), item.text("path"), item.text("sha256"), item.integer("bytes")
        )
        for item in found
    }
    return tuple(records.values())


def _replace(run: RunRecord, **changes: Any) -> RunRecord:
    return RunRecord(**{**{name: getattr(run, name) for name in RunRecord.__slots__}, **changes})


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist", _DAMAGED) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error})", _DAMAGED) from error


def _is_text(value: object) -> TypeGuard[str]:
    """Text that UTF-8 can hold: JSON can also spell half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -_INTEGER_LIMIT <= value < _INTEGER_LIMIT


class _Document:
    """A JSON object and the file it came from; its methods read a key as a type, or say which file has what wrong."""

    def __init__(self, path: Path, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise ArtifactError(f"{path} must hold a JSON object", _DAMAGED)
        self.path = path
        self.values: Mapping[str, Any] = values

    @classmethod
    def read(cls, path: Path) -> _Document:
        return cls(path, _parse(path))

    def inner(self, key: str, optional: bool = False) -> _Document:
        value = self.values.get(key)
        if not isinstance(value, Mapping) and not (optional and value is None):
            raise self.wrong(key, "an object")
        return _Document(self.path, value or {})

    def maybe(self, read: Callable[[str], T], key: str) -> T | None:
        return None if self.values.get(key) is None else read(key)

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not _is_text(value):
            raise self.wrong(key, "text")
        return value

    def integer(self, key: str) -> int:
        value = self.values.get(key)
        if not _is_integer(value):
            raise self.wrong(key, "a whole number")
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if not _is_number(value):
            raise self.wrong(key, "a finite number")
        return float(value)

    def moment(self, key: str) -> datetime:
        try:
            value = datetime.fromisoformat(self.text(key))
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as error:  # the latter at the ends of the calendar
            raise self.wrong(key, "a time such as 2026-01-31T12:00:00+00:00") from error

    def wrong(self, key: str, needed: str) -> ArtifactError:
        what = (
            f"must be {needed}, not {self.values[key]!r:.60}"
            if key in self.values
            else f"is missing; it must be {needed}"
        )
        return ArtifactError(f"{self.path}: {key!r} {what}", _DAMAGED)
