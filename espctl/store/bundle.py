"""A bundle: run folders in one folder or tar file, with a manifest that lists every file and its checksum.

```
manifest.json                             format, schema, runs, and path, sha256, bytes of every other file
runs/RUN/...                              what lies in a run's folder
experts/STORE/expert-0000.json            what training an expert cost
experts/STORE/expert-0000.safetensors     the expert itself, when asked for
```
Nothing that a bundle says is believed before it was checked: `unpack` copies it into a folder of its own and compares
every file with the manifest, and raises before anything else has been touched.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from esp.errors import ArtifactError, InputError
from esp.files import aside
from espctl.errors import SchemaError
from espctl.store import models

FORMAT = "espctl-bundle"
VERSION = 1
MANIFEST = "manifest.json"
MAX_FILES = 200_000
MAX_MANIFEST = 256 * 2**20
MAX_BYTES = 2**40
_CHUNK = 2**20
_HEADERS = 16 * 2**20
_PATH = re.compile(r"(runs/[^/]+(/[^/]+){1,3}|experts/[^/]+/expert-[0-9]{4,}\.(json|safetensors))")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@~()\- ]{0,199}")
_BAD = "it was altered or cut short: get it again from where it was made"


@dataclass(frozen=True)
class Entry:
    """A file of a bundle: its path from the top, with slashes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle says it holds."""

    schema: str
    program: str
    runs: tuple[str, ...]
    files: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(entry.bytes for entry in self.files)

    def text(self) -> str:
        """As it is written: sorted, without times, so that the same files make the same manifest."""
        listed = [{"path": e.path, "sha256": e.sha256, "bytes": e.bytes} for e in self.files]
        head = {"format": FORMAT, "version": VERSION, "schema": self.schema, "program": self.program}
        return json.dumps({**head, "runs": list(self.runs), "files": listed}, sort_keys=True, indent=1) + "\n"


def pack(sources: Mapping[str, Path], runs: Sequence[str], program: str, target: Path) -> Manifest:
    """Write a bundle: a tar file when `target` ends in .tar, .tar.gz or .tgz, else a folder. The same files make the
    same bytes: entries are sorted, and carry no times and no owners.

    Args:
        sources: path in the bundle -> file.
        program: the version that writes it.

    Raises:
        InputError: the target exists, or a file's name cannot be in a bundle.
    """
    if target.exists():
        raise InputError(f"{target} exists already", "give another name, or remove it first")
    for path in sources:
        _require_path(path)
    entries = tuple(Entry(path, *_digest(sources[path])) for path in sorted(sources))
    manifest = Manifest(models.REVISIONS[-1], program, tuple(sorted(runs)), entries)
    if is_tar(target):
        with aside(target) as temporary:
            _write_tar(temporary, manifest, sources, compressed=target.suffix != ".tar")
    else:
        _write_folder(target, manifest, sources)
    return manifest


def is_tar(path: Path) -> bool:
    """Whether a bundle of this name is one file."""
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def unpack(source: Path, staging: Path, space: int) -> Manifest:
    """Copy a bundle into the empty folder `staging` and check all of it on the way.

    Args:
        space: bytes that may be written.

    Raises:
        ArtifactError: it is no bundle; a checksum, a size or a name in it is wrong; it holds links or devices.
        SchemaError: a newer version of the program made it.
        InputError: it needs more space than there is.
    """
    try:
        return _unpack(_folder(source) if source.is_dir() else _tar(source), source, staging, space)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArtifactError(f"{source} cannot be read: {error}", _BAD) from error


def _unpack(members: Iterator[tuple[str, int, IO[bytes]]], source: Path, staging: Path, space: int) -> Manifest:
    first = next(members, None)
    if first is None or first[0] != MANIFEST or first[1] > MAX_MANIFEST:
        raise ArtifactError(f"{source} is no bundle: it does not begin with {MANIFEST}", "espctl runs export makes one")
    manifest = read_manifest(first[2].read(MAX_MANIFEST), source)
    if manifest.bytes > space:
        raise InputError(
            f"the bundle needs {manifest.bytes / 1e9:.1f} GB and {space / 1e9:.1f} GB are free", "free some space"
        )
    expected = {entry.path: entry for entry in manifest.files}
    for path, size, stream in members:
        entry = expected.pop(path, None)
        if entry is None:
            raise ArtifactError(f"{source}: {path!r} is not in its manifest, or is there twice", _BAD)
        if size != entry.bytes:
            raise ArtifactError(f"{source}: {path} has {size} bytes, its manifest says {entry.bytes}", _BAD)
        _copy(stream, staging / path, entry, source)
    if expected:
        raise ArtifactError(f"{source}: {min(expected)} is missing", _BAD)
    return manifest


def read_manifest(content: bytes, source: Path) -> Manifest:
    """A manifest, checked.

    Raises:
        ArtifactError: it is no manifest, or names a file that cannot be in a bundle.
        SchemaError: a newer version of the program made it.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{source}: its manifest is not JSON", _BAD) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ArtifactError(f"{source} is no bundle of espctl", "espctl runs export makes one")
    version, schema = found.get("version"), found.get("schema")
    if version != VERSION or schema not in models.REVISIONS:
        newest = models.REVISIONS[-1]
        raise SchemaError(
            f"{source} has version {version!r} and schema {schema!r}, this program knows {VERSION} and {newest}",
            f"use espctl {found.get('program')!s:.40}, which made it, or a newer one",
        )
    try:
        entries = tuple(Entry(str(e["path"]), str(e["sha256"]), _size(e["bytes"])) for e in found["files"])
        runs = tuple(str(run) for run in found["runs"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{source}: its manifest lacks a key", _BAD) from error
    for entry in entries:
        _require_path(entry.path)
    if len(entries) > MAX_FILES or sum(entry.bytes for entry in entries) > MAX_BYTES:
        raise ArtifactError(f"{source} claims to hold more than a bundle may", _BAD)
    there = {entry.path.split("/")[1] for entry in entries if entry.path.startswith("runs/")}
    if len({entry.path for entry in entries}) != len(entries) or there != set(runs):
        raise ArtifactError(f"{source}: its manifest contradicts itself", _BAD)
    return Manifest(str(schema), str(found.get("program")), runs, entries)


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _require_path(path: str) -> None:
    """A path inside the bundle, of letters that every file system takes."""
    parts = PurePosixPath(path).parts
    plain = all(_PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts)
    if not plain or "/".join(parts) != path or not _PATH.fullmatch(path):
        raise ArtifactError(f"a bundle cannot hold {path!r:.200}", "a bundle holds runs/RUN/... and experts/STORE/...")


def _digest(path: Path) -> tuple[str, int]:
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path} is no file", "remove it: links and devices do not go into a bundle")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _write_tar(target: Path, manifest: Manifest, sources: Mapping[str, Path], compressed: bool) -> None:
    with target.open("wb") as raw:
        outer: IO[bytes] = cast(IO[bytes], gzip.GzipFile("", "wb", 6, raw, mtime=0)) if compressed else raw
        with outer, tarfile.open(fileobj=outer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            content = manifest.text().encode()
            tar.addfile(_member(MANIFEST, len(content)), io.BytesIO(content))
            for entry in manifest.files:
                with sources[entry.path].open("rb") as file:
                    tar.addfile(_member(entry.path, entry.bytes), _Exactly(file, entry))


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member


class _Exactly(io.RawIOBase):
    """A file that must still be what was digested when it is read into a bundle."""

    def __init__(self, file: IO[bytes], entry: Entry) -> None:
        self._file, self._entry, self._hash, self._left = file, entry, hashlib.sha256(), entry.bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._hash.update(data)
        self._left -= len(data)
        if self._left == 0 and self._hash.hexdigest() != self._entry.sha256:
            raise ArtifactError(f"{self._entry.path} changed while it was exported", "export it again")
        return data


def _write_folder(target: Path, manifest: Manifest, sources: Mapping[str, Path]) -> None:
    """Into a folder beside it first, which is renamed when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        for entry in manifest.files:
            with sources[entry.path].open("rb") as file:
                _copy(file, made / entry.path, entry, target)
        (made / MANIFEST).write_text(manifest.text(), encoding="utf-8")
        made.chmod(0o755)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _copy(stream: IO[bytes], target: Path, entry: Entry, source: Path) -> None:
    """Write a file and compare it with its checksum."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, left = hashlib.sha256(), entry.bytes
    with target.open("xb") as file:
        while left and (data := stream.read(min(_CHUNK, left))):
            hasher.update(data)
            file.write(data)
            left -= len(data)
    if left or hasher.hexdigest() != entry.sha256:
        raise ArtifactError(f"{source}: the checksum of {entry.path} does not match", _BAD)


def _folder(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, content) of every file in a folder, the manifest first."""
    if (source / MANIFEST).is_symlink() or not (source / MANIFEST).is_file():
        return
    paths = [source / MANIFEST]
    for path in sorted(source.rglob("*")):
        kind = path.lstat().st_mode
        if stat.S_ISDIR(kind):
            continue
        if not stat.S_ISREG(kind):
            raise ArtifactError(f"{path} is no file", "a bundle holds no links and no devices")
        if path != paths[0]:
            paths.append(path)
    for path in paths:
        with path.open("rb") as file:
            yield path.relative_to(source).as_posix(), path.stat().st_size, file


def _tar(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, content) of every member of a tar file, in its order; whatever is no plain file is refused."""
    with source.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        outer = _Limited(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw)
        outer.allow(MAX_MANIFEST)
        with tarfile.open(fileobj=cast(IO[bytes], outer), mode="r|") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    raise ArtifactError(
                        f"{source}: {member.name!r:.200} is a link, a device or a folder", "a bundle holds files alone"
                    )
                if member.name != MANIFEST:
                    _require_path(member.name)
                content = tar.extractfile(member)
                if content is None:
                    raise ArtifactError(f"{source}: {member.name!r:.200} cannot be read", _BAD)
                outer.allow(member.size)
                yield member.name, member.size, content


class _Limited:
    """A stream that gives what a member may hold and some headers: one that claims to be huge is not believed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, 0

    def allow(self, size: int) -> None:
        """So many bytes may follow, and headers."""
        self._left = size + _HEADERS

    def read(self, size: int) -> bytes:
        """At most `size` bytes."""
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError("a header of it is too large")
        return self._stream.read(size)
