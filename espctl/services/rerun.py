"""Repeating a run from its request, and saying whether the same came out."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import artifact, files, registry
from esp.errors import ArtifactError, InputError
from esp.methods import METHODS
from espctl.errors import RunError
from espctl.jobs import worker
from espctl.services import compress, condense, provenance
from espctl.services.project import Project, dataset_name, find_run, slug
from espctl.services.verify import request_problems
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

REPEATS = "repeats"
"""The entry of a `request.json` that names the run that it repeats."""


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same: the largest difference, and that relative to the largest number. None: no such."""

    tensor: str
    largest: float | None
    relative: float | None


@dataclass(frozen=True)
class Fact:
    """Something about program or machine that was another thing then."""

    name: str
    then: str
    now: str


@dataclass(frozen=True)
class Comparison:
    """A run and its repetition.

    Attributes:
        same: whether every number of the synthetic set is.
        digest, repeated_digest: of the numbers of both sets.
        same_metrics: whether every logged metric is; None where nothing is logged.
        first_step: the first logged step whose metrics differ.
        differences: tensors that differ.
        facts: versions, machine, threads and device where they differ, whether or not the result does.
    """

    run: str
    repeated: str
    same: bool
    digest: str
    repeated_digest: str
    same_metrics: bool | None
    first_step: int | None
    differences: tuple[Difference, ...]
    facts: tuple[Fact, ...]


def steps_of(project: Project, name: str) -> tuple[RunRecord, int]:
    """The run, and its number of steps.

    Raises:
        RunError: there is no such run, or it has made nothing that could be made again.
    """
    record, steps = find_run(project, name), condense.steps_of(project, name)[1]
    if record.state != "finished":
        raise RunError(
            f"the run {record.id} is {record.state}", f"finish it first: espctl condense --resume {record.id}"
        )
    return record, steps


def repeat(project: Project, run: RunRecord, on_progress: worker.Progress) -> RunRecord:
    """Do a run again, with its seed, device and threads, as a new run; a repetition that was stopped goes on.

    Raises:
        InputError: the run is compressed, which `check` repeats without making a run.
        Interrupted: the same call goes on.
        EspError: the repetition failed, and says why.
    """
    if run.kind == compress.KIND:
        raise InputError(f"the run {run.id} is compressed", f"espctl rerun {run.id} --check compresses again")
    stopped = [other for other in store_runs.runs_with_key(project.store, run.key) if _repeats(project, other, run)]
    if unfinished := [other for other in stopped if other.state != "finished"]:
        return condense.resume(project, unfinished[0].id, on_progress)
    body, program = _request(project, run), provenance.collect()
    request = body["request"]
    for problem in request_problems(project.folder_of(run.id), body):
        raise ArtifactError(problem, "restore the file from a copy: what it asks now is another run")
    registry.check(METHODS, "method", request["method"])
    dataset_name(request["dataset"])
    described = {
        **body,
        "created": datetime.now(UTC).isoformat(),
        "provenance": {**program.facts, "device": body["compute"]["device"]},
        REPEATS: run.id,
    }
    name = f"{slug(request['method'])}-{slug(request['dataset'])}-{request['ipc']}-{body['key'][:8]}"
    steps = int(request["method_options"].get("steps", 0))
    return condense.start(project, condense.Prepared(name, body["key"], described, program.patch, steps), on_progress)


def check(project: Project, run: RunRecord, on_progress: worker.Progress) -> Comparison:
    """Repeat a run and compare. A compressed run is compressed again aside, any other makes a new run."""
    if run.kind == compress.KIND:
        return _check_compressed(project, run)
    repeated = repeat(project, run, on_progress)
    return compare(project, run.id, project.folder_of(run.id), project.folder_of(repeated.id))


def compare(project: Project, run: str, first: Path, second: Path) -> Comparison:
    """Compare the folders of two finished runs.

    Raises:
        ArtifactError: a synthetic set is missing or damaged.
    """
    sets = [artifact.load(folder / "synthetic.safetensors").tensors for folder in (first, second)]
    digests = [artifact.content_digest(folder / "synthetic.safetensors") for folder in (first, second)]
    metrics = [_metrics(folder) for folder in (first, second)]
    step = next((s for s in sorted({*metrics[0], *metrics[1]}) if metrics[0].get(s) != metrics[1].get(s)), None)
    return Comparison(
        run,
        second.name,
        digests[0] == digests[1],
        digests[0],
        digests[1],
        step is None if any(metrics) else None,
        step,
        tuple(_differences(*sets)),
        tuple(_facts(*(files.read_json(folder / "request.json") for folder in (first, second)))),
    )


def _check_compressed(project: Project, run: RunRecord) -> Comparison:
    """Compress the source again, beside the project's runs."""
    body = _request(project, run)
    source = find_run(project, body["source"]["run"])
    bits = body["request"]["compression"]["bits"]
    described, patch = compress.describe(project, source, bits)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / run.id
        compress.make(project, described, patch, folder)
        return compare(project, run.id, project.folder_of(run.id), folder)


def _repeats(project: Project, other: RunRecord, run: RunRecord) -> bool:
    path = project.folder_of(other.id) / "request.json"
    return path.is_file() and files.read_json(path).get(REPEATS) == run.id


def _request(project: Project, run: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(project.folder_of(run.id) / "request.json")
    return found


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    found = []
    for name in sorted({*first, *second}):
        one, two = first.get(name), second.get(name)
        if one is None or two is None or one.shape != two.shape:
            found.append(Difference(name, None, None))
        elif not bool((one == two).all()):
            largest = float((one.double() - two.double()).abs().max())
            found.append(Difference(name, largest, largest / max(float(one.double().abs().max()), 1e-300)))
    return found


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> its metrics; the last line of a step counts."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # a line that a crash cut short
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                found[value["step"]] = value
    return found


def _facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Fact]:
    """What differs between two runs' programs, machines and ways to compute."""
    found = []
    for part in ("compute", "provenance"):
        then, now = first.get(part, {}), second.get(part, {})
        found += [
            Fact(name, str(then.get(name)), str(now.get(name)))
            for name in sorted({*then, *now})
            if then.get(name) != now.get(name)
        ]
    return found
