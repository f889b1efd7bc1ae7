"""A damaged database is named by every command, and made anew by one."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from esp.errors import EspError
from espctl.services.project import Project as Opened
from espctl.store import runs as store_runs
from espctl.store.engine import open_store

REBUILD = "hint: make it anew from the run folders: espctl db rebuild"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


def zeroed_first_page(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(bytes(4096))


def zeroed_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(20_000))


DAMAGES: list[Callable[[Path], None]] = [truncated, zeroed_first_page, zeroed_pages, garbage]


def listed(project: Any) -> Any:
    return project("runs ls --json --sort id").json


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_made_anew_by_one_command(generated: Any, damage: Callable[[Path], None]) -> None:
    run = Opened.open({"home": generated.home})
    name = store_runs.list_runs(run.store)[0].id
    generated(f"runs tag {name} kept")
    run.store.close()
    before, database = listed(generated), generated.home / "espctl.db"
    damage(database)
    damaged = database.read_bytes()
    for words in ("runs ls", f"runs tag {name} other", "query 'select id from runs'", "runs sync", "db upgrade"):
        done = generated(*words.split(" ", 1)[:1], *_rest(words), code=1)
        assert REBUILD in done.err, words
    checked = generated.copy(generated.home.with_name("checked"))
    assert "espctl db rebuild" in (found := checked("db check", code=1)).err + found.out
    assert "espctl db rebuild" in checked("doctor --fast", code=1).out.replace("\n", " ").replace("  ", " ")
    done = generated("db rebuild --json")
    assert len(done.json["runs"]["added"]) == 5
    assert Path(done.json["replaced"]).read_bytes() == damaged
    assert listed(generated) == before
    assert "none" in generated("db check").out


def _rest(words: str) -> list[str]:
    _, _, rest = words.partition(" ")
    return [rest.strip("'")] if rest.startswith("'") else rest.split()


def test_a_lost_journal_loses_at_most_what_the_folders_have(generated: Any) -> None:
    before = listed(generated)
    with closing(sqlite3.connect(generated.home / "espctl.db")) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("UPDATE runs SET note = 'only in the journal'")
        raw.commit()
        copy = generated.home.with_name("copy")
        copy.mkdir()
        shutil.copy(generated.home / "espctl.db", copy)  # without what lies beside it
        shutil.copytree(generated.home / "runs", copy / "runs")
    found = type(generated)(copy)
    found("runs sync")
    assert listed(found) == before
    (copy / "espctl.db-wal").write_bytes(b"no journal" * 100)
    assert listed(found) == before


def test_bytes_that_change_anywhere_are_no_traceback(generated: Any, tmp_path: Path) -> None:
    Opened.open({"home": generated.home}).store.close()
    content, chance = (generated.home / "espctl.db").read_bytes(), random.Random(1)
    path, hints = tmp_path / "espctl.db", []
    for _ in range(60):
        changed = bytearray(content)
        start = chance.randrange(len(content))
        changed[start : start + 64] = chance.randbytes(64)
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        path.write_bytes(changed[: len(content)])
        try:
            with open_store(path) as store:
                for run in store_runs.list_runs(store):
                    store_runs.run_detail(store, run.id)
                    store_runs.metrics_of(store, run.id)
        except EspError as error:
            hints.append(error.hint)
    assert hints
    assert all("espctl" in hint or "another file" in hint for hint in hints), hints


def test_a_sound_database_is_kept_and_one_in_use_is_left(generated: Any) -> None:
    with closing(sqlite3.connect(generated.home / "espctl.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "locked by another process" in generated("db rebuild", code=1).err
        other.execute("ROLLBACK")
    done = generated("db rebuild")
    [kept] = (path for path in generated.home.glob("espctl.db.replaced-*") if path.name[-4:] not in ("-wal", "-shm"))
    assert kept.name in done.out
    assert "5 runs, 0 experts, 0 data sets, 0 studies" in done.out
    with closing(sqlite3.connect(kept)) as raw:
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (5,)


def test_experts_and_data_sets_come_back_too(project: Any) -> None:
    before = project("query", "select path, sha256, accuracy from experts order by path", "--json").json
    assert len(before) == 2
    done = project("db rebuild --json").json
    assert (done["experts"], done["datasets"], done["studies"]) == (2, 1, 0)
    assert project("query", "select path, sha256, accuracy from experts order by path", "--json").json == before
    assert project("query", "select name, train from datasets", "--json").json == [{"name": "digits", "train": 1442}]


def test_another_programs_file_is_left(tmp_path: Path, generated: Any) -> None:
    home = tmp_path / "other"
    home.mkdir()
    with closing(sqlite3.connect(home / "espctl.db")) as raw:
        raw.execute("CREATE TABLE songs (id)")
        raw.commit()
    before = (home / "espctl.db").read_bytes()
    assert "is not a database of espctl" in type(generated)(home)("db rebuild", code=1).err
    assert (home / "espctl.db").read_bytes() == before
