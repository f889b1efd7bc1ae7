"""Compressing a finished run: a run of its own, whose synthetic set has 8-, 4- or 2-bit numbers.

It is made in seconds, so it has no states in between: its `request.json` is written last, and a folder without one is
no run. What a process that was killed left behind is overwritten by the next one that makes the same run.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esp import artifact, condensed, files
from esp.compression import BITS, Sizes
from esp.errors import InputError
from espctl.errors import RunError
from espctl.jobs import signals, worker
from espctl.services import provenance
from espctl.services.project import Project, find_run, slug
from espctl.store import runs as store_runs
from espctl.store.records import RunRecord

KIND = "compress"


@dataclass(frozen=True)
class Compressed:
    """A compressed run, the run that it was made from, what it costs, and whether it was there before."""

    run: RunRecord
    source: str
    sizes: Sizes
    file_bytes: int
    known: bool


def compress(project: Project, name: str, bits: int) -> Compressed:
    """Quantise the numbers of the run `name` and enter the result as a run; the same again is looked up.

    Raises:
        RunError: there is no such run, it is not finished, or its file is not the one that it made.
        InputError: the run is compressed itself, or the bits are none that are offered.
    """
    if bits not in BITS:
        raise InputError(f"{bits} bits are not offered", f"give {', '.join(map(str, BITS[:-1]))} or {BITS[-1]}")
    source = find_run(project, name)
    if source.state != "finished":
        raise RunError(
            f"the run {source.id} is {source.state}", f"finish it first: espctl condense --resume {source.id}"
        )
    if source.kind == KIND:
        made_from = _request_of(project, source)["source"]["run"]
        raise InputError(
            f"the run {source.id} is compressed already", f"espctl compress {made_from} --bits {bits} starts afresh"
        )
    described, patch = describe(project, source, bits)
    folder = project.folder_of(described["id"])
    known = (folder / "request.json").is_file() and (folder / "outcome.json").is_file()
    with signals.stoppable():
        if not known:
            make(project, described, patch, folder)
        record = store_runs.record_outcome(project.store, folder)
    outcome = files.read_json(folder / "outcome.json")
    return Compressed(
        record, source.id, Sizes(**outcome["compression"]), int(outcome["artifacts"][0]["bytes"]), bool(known)
    )


def describe(project: Project, source: RunRecord, bits: int) -> tuple[dict[str, Any], str]:
    """The `request.json` of a compressed run (its source's request, and how it is compressed), and the source patch."""
    body = _request_of(project, source)
    request = body["request"]
    marked = {
        **request,
        "parametrisation": f"{request['parametrisation']} ({bits} bit)",  # tables never mix it with what it is not
        "compression": {"bits": bits, "parametrisation": request["parametrisation"]},
    }
    made_from = {"run": source.id, "key": source.key, "sha256": _digest(project, source)}
    # A repeated run has the same key and made the same numbers, in a file with another name in it.
    content = artifact.content_digest(project.folder_of(source.id) / "synthetic.safetensors")
    key = files.sha256(files.canonical({"kind": KIND, "bits": bits, "source": source.key, "content": content}))
    program = provenance.collect()
    described = {
        # not the beginning of the source's name, by which people call the source
        "id": f"{bits}bit-{slug(request['method'])}-{slug(request['dataset'])}-{request['ipc']}-{key[:8]}",
        "key": key,
        "created": datetime.now(UTC).isoformat(),
        "kind": KIND,
        "request": marked,
        "source": made_from,
        "compute": body["compute"],
        "provenance": {**program.facts, "device": "cpu"},
    }
    return described, program.patch


def make(project: Project, described: dict[str, Any], patch: str, folder: Path) -> None:
    """Write the files of a compressed run into `folder`, `request.json` last.

    Raises:
        RunError: another process works on it, or the source has changed.
    """
    begun, clock = datetime.now(UTC), time.monotonic()
    source = project.folder_of(described["source"]["run"])
    bits = described["request"]["compression"]["bits"]
    folder.mkdir(parents=True, exist_ok=True)
    with worker.locked(folder, wait=None):
        if (folder / "request.json").is_file():
            return  # made by another process in the meantime
        path = folder / "synthetic.safetensors"
        extra = {"run": described["id"], "key": described["key"]}
        digest, sizes = condensed.save_compressed(path, condensed.load(source / path.name), bits, extra)
        former = files.read_json(source / "outcome.json")
        outcome = {
            "state": "finished",
            "started": begun.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "seconds": time.monotonic() - clock,
            "peak_memory_bytes": None,
            "stored_numbers": former["stored_numbers"],
            "budget_numbers": former["budget_numbers"],
            "stored_bytes": sizes.stored_bytes,
            "compression": asdict(sizes),
            "device": "cpu",
            "artifacts": [
                {
                    "name": "synthetic",
                    "path": path.name,
                    "sha256": files.file_sha256(path),
                    "digest": digest,
                    "bytes": path.stat().st_size,
                }
            ],
            "error": None,
        }
        if patch:
            files.write_text(folder / "patch.diff", patch)
        files.write_json(folder / "outcome.json", outcome)
        files.write_json(folder / "request.json", described)


def _request_of(project: Project, run: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(project.folder_of(run.id) / "request.json")
    return found


def _digest(project: Project, run: RunRecord) -> str:
    """SHA-256 of the file of a run's set, which must be the one that the run made."""
    folder = project.folder_of(run.id)
    path = folder / "synthetic.safetensors"
    expected = str(files.read_json(folder / "outcome.json")["artifacts"][0]["sha256"])
    if not path.is_file() or files.file_sha256(path) != expected:
        raise RunError(f"{path} is not the file that the run made", "restore it from a copy, or condense again")
    return expected
