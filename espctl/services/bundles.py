"""Runs as a bundle that another machine can check and take in."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import espctl
from esp import files
from esp.errors import ArtifactError, InputError
from espctl.errors import RunError
from espctl.jobs import locks
from espctl.services.project import Project, find_run
from espctl.store import bundle, collect
from espctl.store import folder as folders
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

STAGING = ".import-"
_KEPT_HERE = ("lock", "checkpoint.safetensors")


@dataclass(frozen=True)
class Exported:
    """What was written: the runs, how many files and bytes, and runs that were left out because they have not ended."""

    path: Path
    runs: tuple[str, ...]
    files: int
    bytes: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """What came in: `added` is new, `known` was here before, file by file the same; experts are files of experts."""

    source: Path
    added: tuple[str, ...]
    known: tuple[str, ...]
    experts: tuple[str, ...]
    files: int
    bytes: int


def export(project: Project, names: Sequence[str], typed: str, target: Path, with_experts: bool = False) -> Exported:
    """Write the runs `names`, or all that pass the filter `typed`, into a folder or a tar file.

    Raises:
        RunError: there is no such run, a named one has not ended, or nothing passes the filter.
        InputError: the target exists.
    """
    if names:
        records = list({run.id: run for run in (find_run(project, name) for name in names)}.values())
    else:
        records = store_runs.list_runs(project.store, expression=typed, sort="id")
    ended = [run for run in records if (project.home / run.folder / "outcome.json").is_file()]
    left = tuple(run.id for run in records if run not in ended)
    if names and left:
        raise RunError(f"the run {left[0]} has not ended", f"finish it first: espctl condense --resume {left[0]}")
    if not ended:
        raise RunError("there is nothing to export", "espctl runs ls lists the runs")
    with contextlib.ExitStack() as stack:
        for run in ended:
            stack.enter_context(locks.hold(project.home / run.folder, shared=True))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="espctl-export-")))
        sources = dict(pair for run in ended for pair in _files_of(project, run, with_experts))
        sources |= dict(_labels_now(project, ended, scratch))
        made = bundle.pack(sources, [run.id for run in ended], espctl.__version__, target)
    return Exported(target, made.runs, len(made.files), made.bytes, left)


def _labels_now(project: Project, runs: Sequence[RunRecord], scratch: Path) -> Iterator[tuple[str, Path]]:
    """(path in the bundle, copy) of the labels: alone of all that is in a run's folder, anybody may change them."""
    for run in runs:
        with contextlib.suppress(FileNotFoundError):
            copy = scratch / run.id
            shutil.copyfile(project.home / run.folder / folders.LABELS, copy)
            yield f"runs/{run.id}/{folders.LABELS}", copy


def _files_of(project: Project, run: RunRecord, with_experts: bool) -> Iterator[tuple[str, Path]]:
    """(path in the bundle, file) of a run, and of the experts that it was made with."""
    folder = project.home / run.folder
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and inside.as_posix() not in _KEPT_HERE and (path.is_symlink() or not path.is_dir()):
            yield f"runs/{run.id}/{inside.as_posix()}", path
    for entry in store_runs.requests_of(project.store, [run.id])[run.id].get("experts") or ():
        path = project.home / entry["path"]
        place = f"experts/{path.parent.name}"
        if path.with_suffix(".json").is_file():
            yield f"{place}/{path.stem}.json", path.with_suffix(".json")
        if with_experts:
            if not path.is_file():
                raise ArtifactError(f"the expert {path} is gone", "export without --with-experts, or build it again")
            yield f"{place}/{path.name}", path


def check(source: Path) -> bundle.Manifest:
    """Check a bundle without taking it in.

    Raises:
        EspError: whatever is wrong with it.
    """
    _require_there(source)
    with tempfile.TemporaryDirectory(prefix="espctl-check-") as folder:
        manifest = bundle.unpack(source, Path(folder), shutil.disk_usage(folder).free)
        _check_runs(Path(folder), manifest)
    return manifest


def take_in(project: Project, source: Path) -> Imported:
    """Import a bundle: all of it is checked in a folder of its own before anything is moved into place.

    Raises:
        EspError: whatever is wrong with it; then nothing was imported.
    """
    _require_there(source)
    runs = project.paths.runs
    store = project.store  # opened first: a database of another schema is refused before anything is copied
    runs.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=runs))
    try:
        manifest = bundle.unpack(source, staging, shutil.disk_usage(runs).free)
        _check_runs(staging, manifest)
        known = [run for run in manifest.runs if _is_here(project, staging, manifest, run)]
        added = [run for run in manifest.runs if run not in known]
        experts = _new_experts(project, staging, manifest)
        own = {staging / "runs" / run: project.folder_of(run) for run in added}
        with _moved(experts), store.write(), _moved(own):  # no run of these names begins meanwhile
            pass
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    collect.sync_folders(store, [project.folder_of(run) for run in manifest.runs])
    # Also those that are here already: a process that died may have moved them, and not entered them.
    held = [entry.path for entry in manifest.files if entry.path.startswith("experts/")]
    trained = [project.paths.experts / path.removeprefix("experts/") for path in held if path.endswith(".safetensors")]
    if trained:
        from espctl.services.experts import enter  # imports torch

        enter(project, trained)
    names = tuple(f"{path.parent.name}/{path.name}" for path in experts.values())
    return Imported(source, tuple(added), tuple(known), names, len(manifest.files), manifest.bytes)


def _require_there(source: Path) -> None:
    if not source.exists():
        raise InputError(f"there is no bundle {source}", "espctl runs export makes one")


def _check_runs(staging: Path, manifest: bundle.Manifest) -> None:
    """Every run folder must be readable, ended, and hold the artifacts that it names, with their checksums."""
    listed = {entry.path: entry for entry in manifest.files}
    for run in manifest.runs:
        contents = folders.read(staging / "runs" / run, staging)
        if contents.outcome is None:
            raise ArtifactError(f"the run {run} of the bundle has not ended", "export it again when it is finished")
        for artifact in contents.artifacts:
            entry = listed.get(f"runs/{run}/{artifact.path}")
            if entry is None or (entry.sha256, entry.bytes) != (artifact.sha256, artifact.bytes):
                raise ArtifactError(
                    f"{artifact.path} of the run {run} is missing in the bundle, or is not the file that the run made",
                    "export it again from where it was made",
                )


def _is_here(project: Project, staging: Path, manifest: bundle.Manifest, run: str) -> bool:
    """Whether a run is here already, the same in every file of the bundle.

    Raises:
        RunError: another run of its id is here.
    """
    target = project.folder_of(run)
    if not target.exists():
        return False
    for entry in manifest.files:
        if entry.path.startswith(f"runs/{run}/"):
            here = target / entry.path.removeprefix(f"runs/{run}/")
            if not here.is_file() or files.file_sha256(here) != entry.sha256:
                raise RunError(
                    f"the run {run} is here already and differs in {here.name}",
                    f"remove it first, it can be restored: espctl runs rm {run}",
                )
    return True


def _new_experts(project: Project, staging: Path, manifest: bundle.Manifest) -> dict[Path, Path]:
    """Files of experts that are not here yet: from -> to.

    Raises:
        ArtifactError: another expert is in one's place, or it is damaged.
    """
    moves = {}
    for entry in manifest.files:
        if not entry.path.startswith("experts/"):
            continue
        target = project.paths.experts / entry.path.removeprefix("experts/")
        if not target.exists():
            moves[staging / entry.path] = target
        elif target.suffix == ".safetensors" and files.file_sha256(target) != entry.sha256:
            raise ArtifactError(
                f"another expert is at {target}", "import into another project, or remove that store of experts"
            )
    return moves


@contextlib.contextmanager
def _moved(moves: Mapping[Path, Path]) -> Iterator[None]:
    """Rename everything into place; put all of it back if that, or the block, fails."""
    done: list[tuple[Path, Path]] = []
    try:
        for origin, target in moves.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise RunError(f"{target} was made in the meantime", "run the same command again")
            shutil.move(origin, target) if origin.is_file() else origin.rename(target)
            done.append((origin, target))
        yield
    except BaseException:
        for origin, target in reversed(done):
            target.rename(origin)
        raise
