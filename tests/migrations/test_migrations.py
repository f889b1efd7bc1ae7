"""Schema revisions: forward and back, on old files, and when they fail."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from espctl.errors import SchemaError, StoreError
from espctl.store import engine, migrate, models, sqlite
from espctl.store.runs import delete_run, list_evaluations, list_runs, metrics_of, run_detail

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = {"runs": 3, "evaluations": 4, "metrics": 6, "artifacts": 2, "tags": 2, "experts": 1, "datasets": 1}
REBUILD = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "9001", "0003", None, None

def upgrade():
    with op.batch_alter_table("runs", recreate="always") as batch:
        batch.alter_column("kind", new_column_name="sort")
    {extra}

def downgrade():
    with op.batch_alter_table("runs", recreate="always") as batch:
        batch.alter_column("sort", new_column_name="kind")
"""


def golden(tmp_path: Path, revision: str = "0001") -> Path:
    return Path(shutil.copy(GOLDEN / f"espctl-{revision}.db", tmp_path / "espctl.db"))


def with_second(tmp_path: Path, extra: str = "") -> Path:
    """The folder of revisions with one more in it."""
    ignored = shutil.ignore_patterns("__pycache__")
    folder = Path(shutil.copytree(migrate.scripts(), tmp_path / "migrations", ignore=ignored))
    (folder / "versions" / "9001_rebuild.py").write_text(REBUILD.format(extra=extra))
    return folder


def rows(database: Path) -> dict[str, int]:
    with closing(sqlite3.connect(database)) as connection:
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ROWS}


def schema(database: Path) -> set[str]:
    """Every statement, but for spaces and quotes, in which a table that was made anew differs."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return {" ".join(row[0].replace('"', "").split()) for row in found}


def test_one_head_and_the_models_name_it() -> None:
    assert migrate.heads() == (models.REVISIONS[-1],)


def test_revisions_are_listed_in_order() -> None:
    from alembic.script import ScriptDirectory

    walked = [script.revision for script in ScriptDirectory.from_config(migrate.config()).walk_revisions()]
    assert tuple(reversed(walked)) == models.REVISIONS


def test_every_revision_has_a_golden_database() -> None:
    assert sorted(path.name for path in GOLDEN.glob("*.db")) == [f"espctl-{name}.db" for name in models.REVISIONS]


def test_head_base_head(tmp_path: Path) -> None:
    database = tmp_path / "espctl.db"
    assert migrate.upgrade(database) == migrate.Migrated(None, None)
    before = schema(database)
    migrate.downgrade(database, "base")
    assert all("alembic_version" in sql for sql in schema(database))
    assert sqlite.revision(database) is None
    migrate.upgrade(database)
    assert schema(database) == before
    assert migrate.upgrade(database) == migrate.Migrated(models.REVISIONS[-1], None)


def test_check_finds_nothing_in_a_new_database(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "espctl.db")
    assert migrate.check(tmp_path / "espctl.db").problems == ()


def test_every_constraint_has_a_name() -> None:
    for table in models.Base.metadata.sorted_tables:
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


@pytest.mark.parametrize("revision", models.REVISIONS)
def test_golden_upgrades_with_rows_kept(tmp_path: Path, revision: str) -> None:
    database = golden(tmp_path, revision)
    assert rows(database) == ROWS
    assert migrate.upgrade(database).before == revision
    assert rows(database) == ROWS
    assert migrate.check(database).problems == ()
    with engine.open_store(database) as store:
        assert [run.id for run in list_runs(store, sort="id")] == [
            "dm-digits-1-00000002", "esp-digits-1-00000000", "mtt-digits-1-00000001",
        ]  # fmt: skip
        detail = run_detail(store, "esp")
        assert (detail.run.state, detail.run.peak_memory_bytes, detail.tags) == ("finished", 2**31, ("golden",))
        assert detail.run.created.isoformat() == "2026-01-31T12:00:00+00:00"
        assert [evaluation.accuracy for _, evaluation in list_evaluations(store)] == [0.5, 0.5, 0.75, 0.75]
        assert (detail.run.name, detail.run.note) == (None, None) if revision == "0001" else ("best-esp", "kept")
        assert metrics_of(store, detail.run.id) == {"loss": [(0, 0.0), (1, 0.25), (2, 0.5)]}


def test_a_study_outlives_a_run_that_it_tried(tmp_path: Path) -> None:
    database = golden(tmp_path, models.REVISIONS[-1])
    with engine.open_store(database) as store:
        delete_run(store, "esp-digits-1-00000000")
    with closing(sqlite3.connect(database)) as connection:
        trials = connection.execute("SELECT number, run_id, state, value FROM trials ORDER BY number").fetchall()
        assert trials == [(0, None, "finished", 0.5), (1, None, "failed", None)]
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM studies")
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (0,)


def test_a_table_made_anew_keeps_the_rows_that_refer_to_it(tmp_path: Path) -> None:
    database, folder = golden(tmp_path), with_second(tmp_path)
    migrate.upgrade(database, folder=folder)
    assert rows(database) == ROWS
    migrate.downgrade(database, "0001", folder)
    assert rows(database) == ROWS
    assert sqlite.revision(database) == "0001"


def test_base_head_base_head_with_rows(tmp_path: Path) -> None:
    database = golden(tmp_path)
    old = schema(database)
    migrate.upgrade(database)
    new = schema(database)
    migrate.downgrade(database, "0001")
    assert (schema(database), rows(database)) == (old, ROWS)
    migrate.upgrade(database)
    assert (schema(database), rows(database)) == (new, ROWS)
    migrate.downgrade(database, "base")
    migrate.upgrade(database)
    assert schema(database) == new
    assert migrate.check(database).problems == ()


def test_an_upgrade_copies_the_database_first(tmp_path: Path) -> None:
    database = golden(tmp_path)
    old = schema(database)
    done = migrate.upgrade(database)
    assert done.backup is not None
    assert done.backup.name.startswith("espctl.db.backup-0001-")
    assert (schema(done.backup), rows(done.backup), sqlite.revision(done.backup)) == (old, ROWS, "0001")
    assert migrate.upgrade(database).backup is None
    assert [path.name for path in tmp_path.glob("*.backup-*")] == [done.backup.name]


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ('raise RuntimeError("half way")', "half way"),
        ("op.execute(\"DELETE FROM runs WHERE method = 'esp'\")", "8 rows of artifacts, .*, trials"),
        ('op.execute("SELECT no_such_column FROM runs")', "no_such_column|lacks a column"),
    ],
)
def test_a_failed_revision_leaves_no_trace(tmp_path: Path, extra: str, reason: str) -> None:
    database, folder = golden(tmp_path, "0003"), with_second(tmp_path, extra)
    before = schema(database)
    with pytest.raises(StoreError, match=reason):
        migrate.upgrade(database, folder=folder)
    assert (rows(database), schema(database), sqlite.revision(database)) == (ROWS, before, "0003")


def test_an_older_schema_is_refused(tmp_path: Path) -> None:
    database = golden(tmp_path)
    with pytest.raises(SchemaError, match="has schema 0001, this program needs 0003") as caught:
        engine.open_store(database)
    assert caught.value.hint == "run: espctl db upgrade"
    assert "needs 0003" in migrate.check(database).problems[0]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    database = golden(tmp_path)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    for action in (engine.open_store, migrate.upgrade):
        with pytest.raises(SchemaError, match="has schema 0999, which is newer than this program") as caught:
            action(database)
        assert "version of espctl" in caught.value.hint
    assert rows(database) == ROWS


def test_a_newer_schema_is_refused_with_the_name_of_a_copy_from_before(tmp_path: Path) -> None:
    database = golden(tmp_path)
    copy = migrate.upgrade(database).backup
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    with pytest.raises(SchemaError, match="newer than this program") as caught:
        engine.open_store(database)
    assert str(copy) in caught.value.hint


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM runs WHERE method = 'esp'", "8 rows of"),
        ("DROP INDEX ix_runs_created", "ix_runs_created"),
        ("ALTER TABLE runs ADD COLUMN mood VARCHAR", "mood"),
    ],
)
def test_check_finds_what_is_wrong(tmp_path: Path, damage: str, problem: str) -> None:
    database = golden(tmp_path, models.REVISIONS[-1])
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(damage)
        connection.commit()
    problems = migrate.check(database).problems
    assert len(problems) == 1
    assert problem in problems[0]


def test_check_finds_damaged_pages(tmp_path: Path) -> None:
    database = golden(tmp_path)
    content = bytearray(database.read_bytes())
    content[8192:] = bytes(len(content) - 8192)
    database.write_bytes(content)
    try:
        found = "".join(migrate.check(database).problems)
    except StoreError as error:
        found = error.message
    assert "damaged" in found


def test_check_needs_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        migrate.check(tmp_path / "espctl.db")
    assert list(tmp_path.iterdir()) == []


def test_an_upgrade_does_not_pull_the_file_from_under_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = golden(tmp_path)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(database)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs")
        with pytest.raises(StoreError, match="locked"):
            migrate.upgrade(database)
    assert migrate.upgrade(database).before == "0001"


def test_a_pruned_run_is_told_from_a_failed_one(tmp_path: Path) -> None:
    database = golden(tmp_path, "0002")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE runs SET state = 'failed', error = 'pruned: after 3 steps' WHERE method = 'esp'")
        connection.execute("UPDATE runs SET state = 'failed', error = 'out of memory' WHERE method = 'mtt'")
        connection.commit()
    old = schema(database)
    migrate.upgrade(database)
    assert states(database) == {"dm": ("queued", None), "esp": ("pruned", "after 3 steps"), "mtt": FAILED}
    assert rows(database) == ROWS
    with closing(sqlite3.connect(database)) as connection, pytest.raises(sqlite3.IntegrityError, match="ck_runs_state"):
        connection.execute("UPDATE runs SET state = 'lost'")
    migrate.downgrade(database, "0002")
    assert states(database) == {"dm": ("queued", None), "esp": ("failed", "pruned: after 3 steps"), "mtt": FAILED}
    assert schema(database) == old


FAILED = ("failed", "out of memory")


def states(database: Path) -> dict[str, tuple[str, str | None]]:
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT method, state, error FROM runs").fetchall()
    return {method: (state, error) for method, state, error in found}
