"""Text and JSON files that are either whole or absent, and the digests that name content. No torch in here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esp.errors import ArtifactError

DAMAGED = "the file is damaged: restore it from a copy, or make it again"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(data: bytes | str) -> str:
    """Hexadecimal SHA-256 of bytes, or of text as UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write text aside and rename it into place."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes aside and rename them into place."""
    with aside(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write indented, sorted JSON aside and rename it into place."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        ArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist", "check the name, or make it again") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error})", DAMAGED) from error


def unfinished(folder: Path) -> list[Path]:
    """What in a folder was being written aside: our own files, journals of databases among them, and safetensors'."""
    return sorted({*folder.glob(".*.tmp*"), *folder.glob(".tmp*")})


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
