"""What must hold of a project whatever happened to the processes that worked on it, and what it has in it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from esp import artifact, files
from esp.errors import EspError

MOMENTS = frozenset(
    ["seconds", "created", "started", "finished", "peak_memory_bytes", "provenance", "compute", "git_commit", "version"]
)
"""What two runs of the same request may differ in: times, costs, and the state of the source."""
IDS = frozenset({"id", "study_id"})  # numbers that the database gives in the order of entering
PASSING = re.compile(r"(^|/)(\.?lock|espctl\.db.*|optuna\.db.*|trial-\d+\.lock|patch\.diff)$")
STAMP = re.compile(r"@\d{8}T\d+")


def broken(home: Path) -> list[str]:
    """What is wrong with a project, in sentences; nothing, wherever its processes died."""
    database = home / "espctl.db"
    found = [*_files(home)]
    if database.exists() and database.stat().st_size:
        try:
            with closing(opened(database)) as raw:
                found += [*_database(raw), *_rows(raw, home)]
        except sqlite3.Error as error:
            found.append(f"the database cannot be read: {error}")
    for copy in home.glob("espctl.db.backup-*"):
        with closing(opened(copy)) as raw:
            found += [f"{copy.name}: {problem}" for problem in _database(raw)]
    return found


def opened(path: Path) -> sqlite3.Connection:
    """A connection whose rows have names; for `closing`."""
    raw = sqlite3.connect(path)
    raw.row_factory = sqlite3.Row
    return raw


def _tables(raw: sqlite3.Connection) -> set[str]:
    return {row[0] for row in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def _database(raw: sqlite3.Connection) -> Iterator[str]:
    yield from (f"integrity: {row[0]}" for row in raw.execute("PRAGMA integrity_check") if row[0] != "ok")
    yield from (f"dangling: {tuple(row)}" for row in raw.execute("PRAGMA foreign_key_check"))


def _rows(raw: sqlite3.Connection, home: Path) -> Iterator[str]:
    """Every row that names a file, against the file."""
    if not _tables(raw) >= {"runs", "artifacts", "experts", "evaluations"}:
        return  # the file is being made, or was emptied
    folders = {row["id"]: (home / row["folder"], row["state"]) for row in raw.execute("SELECT * FROM runs")}
    for run, (folder, state) in folders.items():
        if not (folder / "request.json").is_file():
            yield f"the run {run} has no folder"
        elif state == "finished" and not (folder / "outcome.json").is_file():
            yield f"the run {run} is called finished and has no outcome"
    for row in raw.execute("SELECT * FROM artifacts"):
        if row["run_id"] not in folders:
            continue  # it dangles, which was said
        path = folders[row["run_id"]][0] / row["path"]
        yield from _differs(path, row["sha256"], row["bytes"])
    for row in raw.execute("SELECT * FROM evaluations"):
        if row["run_id"] not in folders:
            continue
        scores = [files.read_json(path) for path in folders[row["run_id"]][0].glob("evaluations/*.json")]
        names = ("protocol_hash", "network", "seed", "accuracy")
        if not any(all(score[name] == row[name] for name in names) for score in scores):
            yield f"no file has the score {dict(row)}"
    yield from _experts(raw, home)


def _experts(raw: sqlite3.Connection, home: Path) -> Iterator[str]:
    for row in raw.execute("SELECT * FROM experts"):
        path = home / row["path"]
        if not path.is_file():
            yield f"the expert {path} is gone"
        elif artifact.load(path).digest != row["sha256"]:
            yield f"the expert {path} is not the one of its row"


def _differs(path: Path, sha256: str, size: int) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is gone"
    elif (files.file_sha256(path), path.stat().st_size) != (sha256, size):
        yield f"{path} does not have its checksum"


def _files(home: Path) -> Iterator[str]:
    """Every file that is not set aside must be whole, and every outcome's files must be what it says."""
    for path in sorted(home.rglob("*")):
        inside = path.relative_to(home)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        try:
            if path.suffix in (".safetensors", ".partial") and path.name != "checkpoint.safetensors":
                artifact.load(path)
            elif path.suffix == ".json":
                body = files.read_json(path)
                for entry in (body.get("artifacts") or []) if path.name == "outcome.json" else []:
                    yield from _differs(path.parent / entry["path"], entry["sha256"], entry["bytes"])
        except EspError as error:
            yield error.message


def content(home: Path) -> dict[str, str]:
    """Path -> digest of every file, but for times and what passes; and the rows of every table."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if path.is_file() and not PASSING.search(name):
            aside = any(part.startswith(".") for part in path.relative_to(home).parts)  # perhaps only half of it
            found[STAMP.sub("@", name)] = files.file_sha256(path) if aside else _digest(path)
    return found | rows(home / "espctl.db")


def rows(database: Path) -> dict[str, str]:
    """Table -> its rows as text, sorted, without times and numbers of rows; nothing where there is no database."""
    if not database.exists() or not database.stat().st_size:
        return {}
    with closing(opened(database)) as raw:
        return _dump(raw)


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        return files.canonical(_lasting(files.read_json(path)))
    return files.file_sha256(path)


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lasting(part) for key, part in value.items() if key not in MOMENTS}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def _dump(raw: sqlite3.Connection) -> dict[str, str]:
    """Table -> its rows, sorted, without times and numbers of rows."""
    found = {}
    for table in sorted(_tables(raw)):
        rows = [_row(table, dict(row)) for row in raw.execute(f'SELECT * FROM "{table}"')]
        found[f"table {table}"] = "\n".join(sorted(rows))
    return found


def _row(table: str, row: dict[str, Any]) -> str:
    skipped = MOMENTS | (IDS if table != "runs" else set())
    kept = {name: value for name, value in row.items() if name not in skipped}
    for name in ("request", "outcome"):
        if kept.get(name):
            kept[name] = _lasting(json.loads(kept[name]))
    return json.dumps(kept, sort_keys=True)


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What of `wanted` is missing or different; files beyond it are for `gc`."""
    tables = {name for name in found if name.startswith("table ")}
    missing = [f"{name} is missing" for name in wanted if name not in found]
    beyond = [f"{name} is beyond" for name in sorted(tables - wanted.keys()) if found[name]]
    other = [
        f"{name} differs: {_first(found[name], wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return [*missing, *beyond, *other]


def _first(found: str, wanted: str) -> str:
    """Where two texts part, with some of each."""
    place = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(map(len, (found, wanted)))
    )
    start = max(0, place - 60)
    return f"{found[start : place + 90]!r} instead of {wanted[start : place + 90]!r}"
