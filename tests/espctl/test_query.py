"""SQL over the database: only reading, with a place for every mistake and a limit for every answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from espctl.errors import ExpressionError, StoreError
from espctl.store import query


@pytest.fixture(scope="module")
def database(generated_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(generated_once.copy(tmp_path_factory.mktemp("query") / "home").home / "espctl.db")


def ask(database: Path, sql: str, rows: int | None = 100, seconds: float = 20.0) -> query.Answer:
    return query.ask(database, sql, rows, seconds)


def test_an_answer(database: Path) -> None:
    found = ask(database, "select method, count(*) as n, method from runs group by 1 order by 1")
    assert found == query.Answer(("method", "n", "method_2"), (("esp", 4, "esp"), ("random", 1, "random")), False)
    assert ask(database, "values (1)").rows == ((1,),)


def test_rows_are_limited(database: Path) -> None:
    found = ask(database, "select id from runs", rows=2)
    assert (len(found.rows), found.more) == (2, True)
    assert len(ask(database, "select id from runs", rows=None).rows) == 5
    assert not ask(database, "select id from runs", rows=5).more


@pytest.mark.parametrize(
    "sql",
    [
        "delete from runs", "update runs set method = 'x'", "insert into tags values ('a', 'b')", "drop table runs",
        "create table z (a)", "create temp table z (a)", "alter table runs rename to z", "vacuum", "begin", "reindex",
        "pragma journal_mode = delete", "pragma query_only = off", "pragma user_version", "attach ':memory:' as z",
        "vacuum into 'never.db'", "with a as (select 1) delete from runs", "explain delete from runs",
        "select load_extension('x')", "/* select */ replace into tags values ('a', 'b')", "analyze", "savepoint a",
    ],
)  # fmt: skip
def test_writing_is_refused(database: Path, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = database.read_bytes()
    with pytest.raises(ExpressionError, match="only SELECT is allowed"):
        ask(database, sql)
    assert database.read_bytes() == before
    assert not Path("never.db").exists()


@pytest.mark.parametrize(
    ("sql", "place", "hint"),
    [
        ("selec 1", 0, "SELECT"),
        ("select id from runs where where id", 26, "SELECT"),
        ("select 'where where' from runs where where id", 37, "SELECT"),
        ("select idd from runs", 7, "did you mean 'id'?"),
        ("select id from run", 15, "did you mean 'runs'?"),
        ("select id from runs, experts", 7, "TABLE.COLUMN"),
        ("select foo(1)", 7, "no function"),
        ("select", 6, "complete"),
        ("select 1; select 2", 9, "one at a time"),
        ("select 'abc", 7, "SELECT"),
    ],
)
def test_a_mistake_has_a_place(database: Path, sql: str, place: int, hint: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        ask(database, sql)
    assert caught.value.place == place
    assert hint in caught.value.hint


def test_what_runs_away_is_stopped(database: Path) -> None:
    endless = "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c"
    with pytest.raises(StoreError, match=r"stopped after 0\.2 seconds"):
        ask(database, endless, seconds=0.2)
    with pytest.raises(StoreError, match="larger than"):
        ask(database, "select zeroblob(900000000)")


def test_there_must_be_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        ask(tmp_path / "none.db", "select 1")
    assert list(tmp_path.iterdir()) == []


def test_the_command(generated: Any) -> None:
    assert generated("query", "select seed from runs where id like 'random%'", "--json").json == [{"seed": 0}]
    out = generated("query", "select 'a,b' as x, 1 as y", "--csv").out
    assert out == 'x,y\n"a,b",1\n'
    assert "more than 2 rows" in generated("query", "select id from runs", "--limit", "2").err
    failed = generated("query", "select idd from runs", code=1)
    assert "  select idd from runs\n         ^\n" in failed.err
    assert "exclude each other" in generated("query", "select 1", "--csv", "--json", code=2).err
