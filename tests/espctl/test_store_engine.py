"""Opening a database, its transactions, and what happens when many processes use it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

import espctl
from espctl.errors import SchemaError, StoreError
from espctl.store import sqlite
from espctl.store.engine import Store, open_store
from espctl.store.models import Artifact, Tag

SOURCE = Path(espctl.__file__).parents[1]
COUNT = """
import sys
import time
from pathlib import Path
from espctl.store.engine import open_store
from espctl.store.models import Dataset
from sqlalchemy import select

with open_store(Path(sys.argv[1])) as store:
    for _ in range(60):
        with store.write() as session:
            row = session.scalars(select(Dataset)).one()
            row.train += 1
"""
OPEN = """
import sys, time
from pathlib import Path
from espctl.store import migrate
from espctl.store.engine import open_store

ready, go = Path(sys.argv[1]).with_name("ready-" + sys.argv[2]), Path(sys.argv[1]).with_name("go")
ready.touch()
while not go.exists():
    time.sleep(0.001)
with open_store(Path(sys.argv[1])) as store, store.write() as session:
    insert = "INSERT INTO datasets VALUES (NULL, ?, 'f', 1, 1, 1, 1, 1, 1, 'p', '2026-01-31 12:00:00.000000')"
    session.connection().exec_driver_sql(insert, (sys.argv[2],))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    return [(process.returncode, error) for process in processes for error in [process.communicate(timeout=60)[1]]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "espctl.db") as opened:
        yield opened


def one_dataset(database: Path) -> None:
    with open_store(database) as store, store.write() as session:
        session.connection().exec_driver_sql(
            "INSERT INTO datasets VALUES (1, 'd', 'f', 1, 1, 1, 1, 0, 1, 'p', '2026-01-31 12:00:00.000000')"
        )


def test_a_new_database_is_made_with_its_folder(tmp_path: Path) -> None:
    database = tmp_path / "a b" / "100%" / "what?#.db"
    with open_store(database) as store:
        assert (store.created, store.read_only, store.home) == (True, False, database.parent)
    with open_store(database, tmp_path) as store:
        assert (store.created, store.home) == (False, tmp_path)
    assert [path.name for path in database.parent.iterdir()] == ["what?#.db"]


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "espctl.db").touch()
    with open_store(tmp_path / "espctl.db") as store:
        assert store.created
    assert sqlite.revision(tmp_path / "espctl.db") is not None


def test_connections_are_set_up(store: Store) -> None:
    with store.read() as session:
        connection = session.connection()
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 30_000}


def test_other_files_are_refused(tmp_path: Path) -> None:
    foreign, text = tmp_path / "foreign.db", tmp_path / "text.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE things (name)")
    text.write_text("not a database, but long enough to be read as the header of one " * 40)
    with pytest.raises(SchemaError, match="is not a database of espctl"):
        open_store(foreign)
    with pytest.raises(StoreError, match="not an SQLite database"):
        open_store(text)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(tmp_path)


def test_a_write_is_kept_and_a_failed_one_is_not(store: Store) -> None:
    insert = "INSERT INTO datasets VALUES (NULL, '{}', 'f', 1, 1, 1, 1, 1, 1, 'p', '2026-01-31 12:00:00.000000')"
    with store.write() as session:
        session.connection().exec_driver_sql(insert.format("kept"))
    with pytest.raises(StoreError, match="no such function"), store.write() as session:
        session.connection().exec_driver_sql(insert.format("lost")).connection.exec_driver_sql("SELECT fail()")
    with store.read() as session:
        session.connection().exec_driver_sql(insert.format("discarded"))
    with store.read() as session:
        assert session.connection().exec_driver_sql("SELECT name FROM datasets").scalars().all() == ["kept"]


def test_references_are_enforced(store: Store) -> None:
    with pytest.raises(StoreError, match="FOREIGN KEY") as caught, store.write() as session:
        session.add(Artifact(run_id="nobody", name="n", path="p", sha256="s", bytes=1))
    assert isinstance(caught.value.__cause__, IntegrityError)


def test_a_reader_sees_one_snapshot(store: Store, tmp_path: Path) -> None:
    one_dataset(tmp_path / "espctl.db")
    statement = "SELECT count(*) FROM datasets"
    with store.read() as session:
        assert session.connection().exec_driver_sql(statement).scalar() == 1
        with store.write() as other:
            other.connection().exec_driver_sql("DELETE FROM datasets")
        assert session.connection().exec_driver_sql(statement).scalar() == 1
    with store.read() as session:
        assert session.connection().exec_driver_sql(statement).scalar() == 0


def test_a_second_writer_waits_and_then_gives_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with open_store(store.database) as impatient, store.write() as session:
        session.scalars(select(Tag)).all()
        with pytest.raises(StoreError, match="locked by another process"), impatient.write():
            pass


def test_many_processes_lose_and_fail_no_update(tmp_path: Path) -> None:
    one_dataset(tmp_path / "espctl.db")
    assert finish([start(COUNT, tmp_path / "espctl.db") for _ in range(8)]) == [(0, "")] * 8
    with closing(sqlite3.connect(tmp_path / "espctl.db")) as connection:
        assert connection.execute("SELECT train FROM datasets").fetchall() == [(480,)]


def test_the_store_imports_neither_torch_nor_alembic() -> None:
    loaded = "', '.join({'torch', 'alembic', 'pydantic', 'rich'} & set(sys.modules))"
    assert finish([start(f"import sys, espctl.store.runs; sys.exit({loaded} or 0)")]) == [(0, "")]


def test_an_installed_package_finds_its_revisions(tmp_path: Path) -> None:
    """The wheel has `migrations` as `espctl/migrations`."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (("esp", "esp"), ("espctl", "espctl"), ("migrations", "espctl/migrations")):
        shutil.copytree(SOURCE / source, tmp_path / "site" / target, ignore=ignored)
    begin, end = f"sys.path[0] = {str(tmp_path / 'site')!r}", "sys.stderr.write(sys.modules['espctl'].__file__)"
    script = f"import sys\n{begin}\n{OPEN}\n{end}"
    (tmp_path / "go").touch()
    installed = str(tmp_path / "site" / "espctl" / "__init__.py")
    assert finish([start(script, tmp_path / "espctl.db", "a")]) == [(0, installed)]


def test_processes_that_start_together_make_one_database(tmp_path: Path) -> None:
    processes = [start(OPEN, tmp_path / "espctl.db", name) for name in "abcd"]
    while len(list(tmp_path.glob("ready-*"))) < 4 and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert finish(processes) == [(0, "")] * 4
    with closing(sqlite3.connect(tmp_path / "espctl.db")) as connection:
        assert connection.execute("SELECT name FROM datasets ORDER BY name").fetchall() == [
            ("a",),
            ("b",),
            ("c",),
            ("d",),
        ]
