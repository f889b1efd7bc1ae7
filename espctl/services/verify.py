"""Comparing what lies on the disk with the checksums that were written when it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp import files
from esp.errors import EspError
from espctl.errors import translate
from espctl.services.project import Project, find_run
from espctl.services.reporting.groups import LABELS
from espctl.store import folder as folders
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

CONDENSED = "condense"


@dataclass(frozen=True)
class Verified:
    """A run, an expert or a data set, how many of its files were compared, and what is wrong with them."""

    kind: str
    name: str
    files: int
    problems: tuple[str, ...]


def run(project: Project, name: str) -> Iterator[Verified]:
    """A run, and the experts that it was made with, as far as they are here.

    Raises:
        RunError: there is no such run.
    """
    record = find_run(project, name)
    yield _run(project, record)
    request = store_runs.requests_of(project.store, [record.id])[record.id]
    entries = request.get("experts") or []
    for entry in entries:
        path = project.home / entry["path"]
        if path.exists():
            yield _expert(f"{path.parent.name}/{path.name}", path, entry["sha256"])


def everything(project: Project) -> Iterator[Verified]:
    """Every run, expert and converted data set of the project."""
    for record in store_runs.list_runs(project.store, sort="id"):
        yield _run(project, record)
    for path in sorted(project.paths.experts.glob("*/expert-*.safetensors")):
        yield _expert(f"{path.parent.name}/{path.name}", path)
    if project.paths.data.is_dir():
        from espctl.services import data  # imports torch

        for found in data.check(project, ()):
            yield Verified("data set", found.name, 1, (found.problem,) if found.problem else ())


def total(project: Project) -> int:
    """How much `everything` will look at."""
    experts = len(list(project.paths.experts.glob("*/expert-*.safetensors")))
    return len(store_runs.list_runs(project.store)) + experts + len(list(project.paths.data.glob("*.safetensors")))


def _run(project: Project, record: RunRecord) -> Verified:
    folder = project.home / record.folder
    if not folder.is_dir():
        return Verified("run", record.id, 0, (f"its folder {folder} is gone",))
    try:
        contents = folders.read(folder, project.home)
        known = store_runs.run_detail(project.store, record.id)
        problems = [*request_problems(folder, contents.request), *_artifacts(folder, contents)]
        problems += _patch(folder, contents.request)
    except (EspError, OSError) as error:
        return Verified("run", record.id, 1, (translate(error).message,))
    problems += _against_rows(contents, known.artifacts, known.evaluations)
    count = 2 + len(contents.artifacts) + len(contents.evaluations) + (folder / "patch.diff").exists()
    return Verified("run", record.id, count, tuple(problems))


def request_problems(folder: Path, document: Mapping[str, Any]) -> Iterator[str]:
    """The key is a digest of the request, so that the request cannot change without it."""
    if document["kind"] != CONDENSED:
        return  # the key of a compressed run is that of its source and of what it made
    request = document["request"]
    asked = {name: value for name, value in request.items() if name not in LABELS}
    if document["key"] not in {files.sha256(files.canonical(one)) for one in (asked, request)}:
        yield f"{folder / 'request.json'} was changed: it does not belong to its key"


def _artifacts(folder: Path, contents: folders.Contents) -> Iterator[str]:
    for artifact in contents.artifacts:
        path = folder / artifact.path
        if not path.resolve().is_relative_to(folder.resolve()):
            yield f"{artifact.name} lies outside the run's folder: {artifact.path}"
        elif not path.is_file():
            yield f"{path} is gone"
        elif path.stat().st_size != artifact.bytes:
            yield f"{path} has {path.stat().st_size} bytes, it was made with {artifact.bytes}"
        elif files.file_sha256(path) != artifact.sha256:
            yield f"{path} does not have the checksum that it was made with"


def _patch(folder: Path, document: Mapping[str, Any]) -> Iterator[str]:
    digest = (document.get("provenance") or {}).get("git_patch_sha256")
    path = folder / "patch.diff"
    if digest and not path.exists():
        yield f"{path} is gone"
    elif digest and files.sha256(path.read_text(encoding="utf-8", errors="surrogateescape")) != digest:
        yield f"{path} does not have the checksum that it was made with"


def _against_rows(contents: folders.Contents, artifacts: Sequence[Any], evaluations: Sequence[Any]) -> Iterator[str]:
    """The database recorded the files when they were made: a file and its checksum changed together show here."""
    recorded = {artifact.name: artifact.sha256 for artifact in artifacts}
    for artifact in contents.artifacts:
        if recorded.get(artifact.name, artifact.sha256) != artifact.sha256:
            yield f"{artifact.path} is not the file that the database recorded"
    if contents.outcome is not None and not artifacts and contents.artifacts:
        yield "the database has not recorded what it made: run espctl runs sync"
    on_disk = set(contents.evaluations)
    for score in evaluations:
        if score not in on_disk:
            yield f"the score of {score.network}, {score.protocol}, seed {score.seed} is not the recorded one"


def _expert(name: str, path: Path, digest: str | None = None) -> Verified:
    """Every byte of an expert's file against its own digests, and its digest against the one that a run used."""
    from esp import artifact  # imports torch

    try:
        found = artifact.load(path)
    except EspError as error:
        return Verified("expert", name, 1, (error.message,))
    changed = digest is not None and found.digest != digest
    return Verified("expert", name, 1, ("it is not the expert that the run used",) if changed else ())
