"""Files that are either whole or absent, and that prove their own content.

An artifact is one safetensors file. Its only metadata entry, `esp`, is canonical JSON:

    {"format": 1, "meta": {...}, "digests": {tensor: sha256 | [sha256 of each row]}, "digest": sha256 of the rest}

so that a reader finds a truncated, altered or swapped file before using a number of it. A tensor saved `by_row` can be
read and verified a few rows at a time, without touching the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esp.errors import ArtifactError
from esp.files import DAMAGED, aside, canonical, sha256

FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A verified file: its metadata, its tensors, and the digest of both."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    digest: str


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a CPU tensor."""
    hasher = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], by_row: Sequence[str] = ()) -> str:
    """Write tensors and metadata to `path`, aside first and then renamed; return the digest.

    Args:
        path: the file to make or replace; its folder is made when missing.
        tensors: name -> tensor of any shape and dtype; moved to the CPU.
        meta: anything JSON can hold.
        by_row: names of tensors whose leading index is digested row by row, for `read_rows`.
    """
    held = _apart({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
    digests = {
        name: [tensor_digest(row) for row in tensor] if name in by_row else tensor_digest(tensor)
        for name, tensor in held.items()
    }
    body = {"format": FORMAT, "meta": dict(meta), "digests": digests}
    digest = sha256(canonical(body))
    with aside(path) as temporary, _told_by_errno(path):
        save_file(held, temporary, metadata={"esp": canonical({**body, "digest": digest})})
    return digest


def load(path: Path) -> Artifact:
    """Read a whole artifact and verify it. Tensors map the file's pages; they are not copied.

    Raises:
        ArtifactError: the file is missing, damaged, or of another format.
    """
    with _opened(path) as (file, body):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    if tensors.keys() != body["digests"].keys():
        raise ArtifactError(f"{path} does not hold the tensors that it lists", DAMAGED)
    for name, tensor in tensors.items():
        expected = body["digests"][name]
        rows = isinstance(expected, list) and tensor.ndim > 0
        found = [tensor_digest(row) for row in tensor] if rows else tensor_digest(tensor)
        if found != expected:
            raise ArtifactError(f"{path}: the checksum of {name!r} does not match", DAMAGED)
    return Artifact(body["meta"], tensors, body["digest"])


def read_meta(path: Path) -> tuple[dict[str, Any], str]:
    """Metadata and digest of an artifact, without reading its tensors."""
    with _opened(path) as (_, body):
        return body["meta"], body["digest"]


def content_digest(path: Path) -> str:
    """Digest of the tensors alone: equal for files that hold the same numbers, whatever their metadata say."""
    with _opened(path) as (_, body):
        return sha256(canonical(body["digests"]))


def read_rows(path: Path, name: str, start: int, stop: int) -> Tensor:
    """Rows `start:stop` of a tensor saved `by_row`, read as one slice and verified.

    Raises:
        ArtifactError: the file is missing or damaged, or has no such rows.
    """
    with _opened(path) as (file, body):
        expected = body["digests"].get(name)
        if not isinstance(expected, list) or not 0 <= start < stop <= len(expected):
            raise ArtifactError(f"{path} has no rows {start} to {stop} of {name!r}", "ask for rows that the file holds")
        rows: Tensor = file.get_slice(name)[start:stop]
    if [tensor_digest(row) for row in rows] != expected[start:stop]:
        raise ArtifactError(f"{path}: the checksum of {name!r} does not match", DAMAGED)
    return rows


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, which safetensors refuses to write; only what shares is copied."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


@contextlib.contextmanager
def _told_by_errno(path: Path) -> Iterator[None]:
    """What safetensors and torch only write into a sentence, such as a full disk, as the OSError that it is."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if found := re.search(r"\(os error (\d+)\)|^unable to .* \((\d+)\)$", str(error)):
            number = int(found[1] or found[2])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its verified header."""
    gone = ArtifactError(f"{path} does not exist", "check the name, or make it again")
    if not path.is_file():
        raise gone
    try:
        with _told_by_errno(path), safe_open(path, framework="pt") as file:  # which opens it twice
            yield file, _header(path, file.metadata() or {})
    except FileNotFoundError as error:
        raise gone from error
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a readable safetensors file ({error})", DAMAGED) from error


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(metadata["esp"])
        exact = metadata["esp"] == canonical(body)
        digest, version = body.pop("digest"), body["format"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} was not written by this program", "give a file that espctl made") from error
    if version != FORMAT:
        made = f", {body['program']!s:.40}," if "program" in body else ""  # which every later format is to say
        raise ArtifactError(
            f"{path} has format {version!r:.20}, this program reads {FORMAT}",
            f"use the version that wrote it{made} or a newer one",
        )
    if not exact or digest != sha256(canonical(body)):
        raise ArtifactError(f"{path}: the checksum of its header does not match", DAMAGED)
    require(path, body, {"meta": dict, "digests": dict})
    return {**body, "digest": digest}


def require(path: Path, values: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Refuse a header that lacks a key, or has a value of another type there: anybody can write a valid digest.

    Raises:
        ArtifactError: naming the file and the key.
    """
    for key, kind in kinds.items():
        value = values.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ArtifactError(f"{path}: {key!r} of its header is missing or of the wrong type", DAMAGED)
