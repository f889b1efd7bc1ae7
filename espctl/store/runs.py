"""Runs in the database: entering, finding, listing and removing them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import String, func, select, type_coerce
from sqlalchemy.orm import Session

from esp import files
from esp.errors import UnknownNameError, closest_hint
from espctl.errors import RunError
from espctl.store import folder as folders
from espctl.store import selection
from espctl.store.collect import record_evaluation, record_evaluations, record_outcome, sync
from espctl.store.engine import Store
from espctl.store.experts import delete_experts, list_experts, record_expert
from espctl.store.filters import LAST, Filters, Where, conditions
from espctl.store.models import STATES, Artifact, Evaluation, Metric, Run, Tag
from espctl.store.records import ArtifactRecord, EvaluationRecord, RunDetail, RunRecord

__all__ = [
    "RUN_COLUMNS", "asked", "begin_run", "count_runs", "delete_experts", "delete_run", "evaluations_of", "find_run",
    "forget_moved", "insert_run", "list_evaluations", "list_experts", "list_runs", "list_tags", "metrics_of",
    "option_names", "record_evaluation",
    "record_evaluations", "record_expert", "record_outcome", "requests_of", "run_detail", "runs_with_key",
    "set_state", "sync", "tags_of",
]  # fmt: skip

RUN_COLUMNS: tuple[str, ...] = tuple(RunRecord.__slots__)
"""What `list_runs` can sort by; filters know `tag` as well."""

_RUN = [getattr(Run, name) for name in RUN_COLUMNS]
_EVALUATION = [getattr(Evaluation, name) for name in EvaluationRecord.__slots__]
_ARTIFACT = [getattr(Artifact, name) for name in ArtifactRecord.__slots__]
_WHOLE = re.compile(r"-[0-9a-f]{8}$")
_PARAMETERS = 10_000  # values in one statement; SQLite's limit is 32,766
_SUGGESTED_FROM = 1_000  # newest runs among which a mistyped name is looked for


def insert_run(store: Store, request: Mapping[str, Any], folder: Path) -> RunRecord:
    """Enter a queued run.

    Args:
        request: the value of the `request.json` that was already written into `folder`.
        folder: the run folder, named like the run's id.

    Raises:
        RunError: a run of this id exists.
        ArtifactError: the request lacks a key.
    """
    record = folders.run_record(request, folder, store.home, folder / "request.json")
    with store.write() as session:
        if session.get(Run, record.id) is not None:
            raise RunError(f"the run {record.id!r} exists already", "start it again under another id")
        session.add(Run(**{name: getattr(record, name) for name in RUN_COLUMNS}, request=dict(request), outcome=None))
    return record


def begin_run(
    store: Store, runs_folder: Path, name: str, key: str, write: Callable[[Path], Mapping[str, Any]], again: bool
) -> tuple[RunRecord, bool]:
    """Enter a queued run with its folder, or find the one that another process has just begun.

    Looking and entering are one transaction, so that of two processes that ask the same at the same moment one begins.

    Args:
        name: the run's id; the first with a number that is free, where it is taken.
        key: of the request.
        write: makes the run's folder with its `request.json`, whose value it returns.
        again: begin another run also where one of this key is there.

    Returns:
        The run, and whether it was begun here.
    """
    with store.write() as session:
        for run_id in () if again else session.scalars(select(Run.id).where(Run.key == key).order_by(Run.created)):
            if (runs_folder / run_id / "request.json").is_file():
                return _one(session, run_id), False
        folder = next(path for path in _numbered(runs_folder, name) if _is_free(session, path))
        request = write(folder)
        record = folders.run_record(request, folder, store.home, folder / "request.json")
        session.add(Run(**{name: getattr(record, name) for name in RUN_COLUMNS}, request=dict(request), outcome=None))
    return record, True


def _numbered(runs_folder: Path, name: str) -> Iterator[Path]:
    yield runs_folder / name
    yield from (runs_folder / f"{name}-{number}" for number in itertools.count(2))


def _is_free(session: Session, folder: Path) -> bool:
    """Whether no run has this name.

    A folder with nothing but a lock in it is of who asks for the same just now; one without a request is what a
    process left that died, or had no space, while it wrote that.
    """
    left = {"lock", "patch.diff", *(path.name for path in files.unfinished(folder))}
    empty = not folder.is_file() and all(path.name in left for path in folder.glob("*"))
    return empty and session.get(Run, folder.name) is None


def set_state(
    store: Store, run_id: str, state: str, *, expected: Collection[str] = STATES, started: datetime | None = None,
    device: str | None = None, error: str | None = None,
) -> RunRecord:  # fmt: skip
    """Move a run to `state`, in one transaction with the look at the state it has.

    Args:
        expected: the states that it may have now; two processes that claim one queued run cannot both succeed.
        started: when work began; None keeps what is there, like `device`.
        error: why it failed; None clears it.

    Raises:
        RunError: there is no such run, or it is in another state.
    """
    if state not in STATES:
        raise UnknownNameError("state", state, STATES)
    with store.write() as session:
        run = session.get(Run, run_id)
        if run is None:
            raise _unknown(session, run_id)
        if run.state not in expected:
            raise RunError(f"the run {run_id!r} is {run.state}", f"it must be {' or '.join(expected)}")
        run.state, run.error = state, error
        run.started, run.device = started or run.started, device or run.device
        session.flush()
        return _one(session, run_id)


def find_run(store: Store, name: str) -> RunRecord:
    """The run whose id or own name is `name`, or the only one whose id begins with it.

    Raises:
        RunError: there is none, or several; the hint names the closest, or some of them.
    """
    with store.read() as session:
        return _one(session, _resolve(session, name))


def run_detail(store: Store, name: str) -> RunDetail:
    """A run with its request, outcome, evaluations, artifacts and tags; `name` as in `find_run`."""
    with store.read() as session:
        run_id = _resolve(session, name)
        run = session.get_one(Run, run_id)
        evaluations = session.execute(
            select(*_EVALUATION)
            .where(Evaluation.run_id == run_id)
            .order_by(Evaluation.protocol, Evaluation.network, Evaluation.seed)
        )
        artifacts = session.execute(select(*_ARTIFACT).where(Artifact.run_id == run_id).order_by(Artifact.name))
        return RunDetail(
            run=_one(session, run_id),
            request=run.request,
            outcome=run.outcome,
            evaluations=tuple(EvaluationRecord(*row) for row in evaluations),
            artifacts=tuple(ArtifactRecord(*row) for row in artifacts),
            tags=tuple(session.scalars(select(Tag.tag).where(Tag.run_id == run_id).order_by(Tag.tag))),
        )


def list_runs(
    store: Store, filters: Filters | None = None, where: Where = (), sort: str = "-created", limit: int | None = None,
    offset: int = 0, expression: str = "",
) -> list[RunRecord]:  # fmt: skip
    """Runs that match.

    Args:
        filters: column -> value or list of values; `tag` counts as a column.
        where: (column, one of = != < <= > >=, value) triples.
        sort: a column, `accuracy` or `options.NAME`; descending with `-` before it.
        expression: a filter as people type it, see `selection`.

    Raises:
        UnknownNameError: no such column; the hint names the closest.
        InputError: a value that the column cannot have.
        ExpressionError: the expression cannot be understood.
    """
    chosen, typed = _chosen(filters or {}, where), selection.condition(expression)
    statement = select(*_RUN).where(*chosen, *([] if typed is None else [typed])).order_by(*selection.order(sort))
    with store.read() as session:
        return [RunRecord(*row) for row in session.execute(statement.limit(limit).offset(offset))]


def count_runs(store: Store, expression: str = "") -> int:
    """How many runs match a filter as people type it."""
    typed = selection.condition(expression)
    with store.read() as session:
        statement = select(func.count()).select_from(Run)
        return session.scalar(statement if typed is None else statement.where(typed)) or 0


def runs_with_key(store: Store, key: str) -> list[RunRecord]:
    """Runs of one request, newest first."""
    return list_runs(store, {"key": key})


def list_evaluations(
    store: Store, filters: Filters | None = None, where: Where = (), protocol: str | None = None
) -> list[tuple[RunRecord, EvaluationRecord]]:
    """Every evaluation of the runs that match, with its run; for reports. Arguments as in `list_runs`."""
    statement = select(*_RUN, *_EVALUATION).join(Evaluation, Evaluation.run_id == Run.id)
    statement = statement.where(*_chosen(filters or {}, where)).order_by(Run.created, Run.id, Evaluation.id)
    if protocol is not None:
        statement = statement.where(Evaluation.protocol == protocol)
    width = len(_RUN)
    with store.read() as session:
        return [(RunRecord(*row[:width]), EvaluationRecord(*row[width:])) for row in session.execute(statement)]


def evaluations_of(store: Store, run_ids: Sequence[str]) -> dict[str, tuple[EvaluationRecord, ...]]:
    """Run id -> its evaluations; a run that has none is left out."""
    found: dict[str, list[EvaluationRecord]] = {}
    with store.read() as session:
        for start in range(0, len(run_ids), _PARAMETERS):
            chosen = Evaluation.run_id.in_(run_ids[start : start + _PARAMETERS])
            for row in session.execute(select(*_EVALUATION).where(chosen).order_by(Evaluation.id)):
                found.setdefault(row[0], []).append(EvaluationRecord(*row))
    return {run_id: tuple(records) for run_id, records in found.items()}


def requests_of(store: Store, run_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Run id -> what was asked: method, options, data set and the rest of a request, without its provenance."""
    found: dict[str, Mapping[str, Any]] = {}
    with store.read() as session:
        for start in range(0, len(run_ids), _PARAMETERS):
            chosen = Run.id.in_(run_ids[start : start + _PARAMETERS])
            found.update(
                {run_id: body["request"] for run_id, body in session.execute(select(Run.id, Run.request).where(chosen))}
            )
    return found


def asked(store: Store, run_ids: Sequence[str], without: Sequence[str]) -> dict[str, str]:
    """Run id -> canonical JSON of what was asked, without the entries of some names: equal where runs ask the same.

    SQLite takes the entries out, so that of thousands of runs that ask the same one request is parsed here.
    """
    text = func.json_remove(func.json_extract(Run.request, "$.request"), *(f'$."{name}"' for name in without))
    found: dict[str, str] = {}
    known: dict[str, str] = {}
    with store.read() as session:
        for start in range(0, len(run_ids), _PARAMETERS):
            chosen = Run.id.in_(run_ids[start : start + _PARAMETERS])
            for run_id, request in session.execute(select(Run.id, type_coerce(text, String)).where(chosen)):
                if request not in known:
                    known[request] = files.canonical(json.loads(request))
                found[run_id] = known[request]
    return found


def metrics_of(store: Store, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) in order of steps, as recorded when the run was collected."""
    found: dict[str, list[tuple[int, float]]] = {}
    chosen = select(Metric.name, Metric.step, Metric.value).where(Metric.run_id == run_id)
    with store.read() as session:
        for name, step, value in session.execute(chosen.order_by(Metric.name, Metric.step)):
            found.setdefault(name, []).append((step, value))
    return found


def tags_of(store: Store, run_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Run id -> its tags; a run that has none is left out."""
    found: dict[str, list[str]] = {}
    with store.read() as session:
        for start in range(0, len(run_ids), _PARAMETERS):
            chosen = Tag.run_id.in_(run_ids[start : start + _PARAMETERS])
            for run_id, tag in session.execute(select(Tag.run_id, Tag.tag).where(chosen).order_by(Tag.tag)):
                found.setdefault(run_id, []).append(tag)
    return {run_id: tuple(tags) for run_id, tags in found.items()}


def option_names(store: Store) -> list[str]:
    """Every name of an option in any run."""
    with store.read() as session:
        return sorted(session.scalars(selection.known_options()))


def list_tags(store: Store) -> list[str]:
    """Every tag in use."""
    with store.read() as session:
        return list(session.scalars(select(Tag.tag).distinct().order_by(Tag.tag)))


def delete_run(store: Store, run_id: str) -> None:
    """Remove a run and all that hangs on it; remove its folder after that, so that no row points nowhere.

    Raises:
        RunError: there is no such run.
    """
    with store.write() as session:
        if (run := session.get(Run, run_id)) is None:
            raise _unknown(session, run_id)
        session.delete(run)


def forget_moved(store: Store, run_id: str) -> None:
    """Remove the row of a run whose folder is gone, if another process has entered it from the folder before that."""
    with store.write() as session:
        run = session.get(Run, run_id)
        if run is not None and not (store.home / run.folder / "request.json").is_file():
            session.delete(run)


def _chosen(filters: Filters, where: Where) -> list[Any]:
    """Conditions on runs, `tag` among them."""
    names = (*RUN_COLUMNS, "tag")
    own = {name: value for name, value in filters.items() if name != "tag"}
    found = conditions(Run, names, own, where)
    if "tag" in filters:
        found.append(Run.id.in_(select(Tag.run_id).where(*conditions(Tag, ("tag",), {"tag": filters["tag"]}, ()))))
    return found


def _one(session: Session, run_id: str) -> RunRecord:
    return RunRecord(*session.execute(select(*_RUN).where(Run.id == run_id)).one())


def _resolve(session: Session, name: str) -> str:
    """The id that `name` stands for: an id comes before a name, and a name before the beginning of an id.

    A whole id is no beginning: once that run is removed it must not mean the repetition `ID-2`.
    """
    if name and session.scalar(select(Run.id).where(Run.id == name)) is None:
        called = list(session.scalars(select(Run.id).where(Run.name == name).order_by(Run.id).limit(6)))
        if len(called) == 1:
            return called[0]
        if called:
            raise RunError(f"more than one run is called {name!r}", f"give its id: {', '.join(called)}")
    begins = (Run.id >= name) & (Run.id < name + LAST) if not _WHOLE.search(name) else Run.id == name
    found = list(session.scalars(select(Run.id).where(begins).order_by(Run.id).limit(6)))
    if not found or not name:
        raise _unknown(session, name)
    if len(found) > 1 and found[0] != name:
        others = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise RunError(f"more than one run begins with {name!r}", f"give more of its id: {others}")
    return found[0]


def _unknown(session: Session, name: str) -> RunError:
    newest = list(session.scalars(select(Run.id).order_by(Run.created.desc()).limit(_SUGGESTED_FROM)))
    called = list(session.scalars(select(Run.name).where(Run.name.is_not(None)).limit(_SUGGESTED_FROM)))
    hint = closest_hint(name, [*newest, *(word for word in called if word)])
    if not hint.startswith("did you mean"):
        hint = "espctl runs ls lists the runs" if newest else "there are no runs yet: start one with espctl condense"
    return RunError(f"there is no run {name!r}", hint)
