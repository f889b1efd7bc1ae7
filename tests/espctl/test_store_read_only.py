"""A database that the user may read and not write: somebody else's, or one on a read-only disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import espctl
from espctl.store.engine import open_store

# root may write everything, so the script becomes nobody; it imports first, for nobody may not read our packages
SCRIPT = """
import os, sys
from pathlib import Path
import sqlalchemy.dialects.sqlite
from espctl.errors import StoreError
from espctl.store import engine, migrate
from espctl.store.experts import list_datasets, record_dataset
from espctl.store.records import DatasetRecord
from datetime import datetime, UTC

if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
database = Path(sys.argv[1])
with engine.open_store(database) as store:
    print(store.read_only, [found.name for found in list_datasets(store)])
    try:
        record_dataset(store, DatasetRecord("new", "f", 1, 1, 1, 1, 1, 1, "p", datetime.now(UTC)))
    except StoreError as error:
        print(error.message, "|", error.hint)
print(migrate.check(database).problems)
for make in (lambda: migrate.upgrade(database), lambda: engine.open_store(database.parent / "new.db")):
    try:
        print(make())
    except (StoreError, OSError) as error:
        print(error)
"""


@pytest.fixture
def database() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_store(folder / "espctl.db") as store, store.write() as session:
            session.connection().exec_driver_sql(
                "INSERT INTO datasets VALUES (1, 'old', 'f', 1, 1, 1, 1, 0, 1, 'p', '2026-01-31 12:00:00.000000')"
            )
        (folder / "espctl.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder / "espctl.db"
        folder.chmod(0o755)


def test_a_read_only_database_is_read_and_refuses_writes_in_one_sentence(database: Path) -> None:
    source = str(Path(espctl.__file__).parents[1])
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(database)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    opened, written, checked, upgraded, made = done.stdout.splitlines()
    assert opened == "True ['old']"
    assert written == f"the database {database} is read-only | check the owner and mode of the file and its folder"
    assert checked == "()"
    assert upgraded == f"the database {database} is read-only"
    assert made == "the database file cannot be opened"
    assert [path.name for path in database.parent.iterdir()] == ["espctl.db"]
