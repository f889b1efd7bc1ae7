"""SQL that a user typed, answered from a connection that cannot write.

Three things stand between a statement and the file, none of which reads the text: the file is opened read-only,
`query_only` is on, and SQLite asks an authorizer about everything that a statement would do before it runs.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp.errors import EspError, InputError, closest_hint
from espctl.errors import ExpressionError, StoreError, translate
from espctl.store import sqlite

CELL_BYTES = 50_000_000
_STEPS = 20_000  # of SQLite's machine, between two looks at the clock
_RECURSIVE = 33  # SQLITE_RECURSIVE, which Python's module does not name
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, _RECURSIVE}
_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in (
        "INSERT", "UPDATE", "DELETE", "CREATE_INDEX", "CREATE_TABLE", "CREATE_TEMP_INDEX", "CREATE_TEMP_TABLE",
        "CREATE_TEMP_TRIGGER", "CREATE_TEMP_VIEW", "CREATE_TRIGGER", "CREATE_VIEW", "CREATE_VTABLE", "DROP_INDEX",
        "DROP_TABLE", "DROP_TEMP_INDEX", "DROP_TEMP_TABLE", "DROP_TEMP_TRIGGER", "DROP_TEMP_VIEW", "DROP_TRIGGER",
        "DROP_VIEW", "DROP_VTABLE", "ALTER_TABLE", "REINDEX", "ANALYZE", "ATTACH", "DETACH", "PRAGMA", "TRANSACTION",
        "SAVEPOINT",
    )
}  # fmt: skip
_NEAR = re.compile(r'near "(?P<word>.*)": syntax error|unrecognized token: "(?P<token>.*?)"?$', re.DOTALL)
_NAMED = re.compile(r"(no such (?P<kind>column|table|function)|ambiguous column name): (?P<name>.+)")


@dataclass(frozen=True)
class Answer:
    """Rows of a query; `more` says that it has further ones, which were not read."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


@dataclass
class _Guard:
    """What a statement tried that it may not."""

    refused: list[str] = field(default_factory=list)

    def __call__(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in _ALLOWED and (second or "").lower() != "load_extension":
            return sqlite3.SQLITE_OK
        name = f"the function {second}" if action == sqlite3.SQLITE_FUNCTION else _ACTIONS.get(action, "what it does")
        self.refused.append(f"{name} {first}" if first and not first.startswith("sqlite_") else name)
        return sqlite3.SQLITE_DENY


def ask(database: Path, sql: str, rows: int | None, seconds: float) -> Answer:
    """The answer to one SELECT.

    Args:
        rows: how many are read at most; None for all.
        seconds: after which the query is stopped.

    Raises:
        StoreError: there is no database, or the query takes longer than that.
        ExpressionError: the statement is no SQL, names what there is not, or would write; and where.
    """
    if sqlite.revision(database) is None:
        raise StoreError(f"there is no database at {database}", "run: espctl db upgrade")
    if not sql.strip():
        raise InputError("there is no statement", 'write for example: espctl query "select id, state from runs"')
    guard = _Guard()
    with contextlib.closing(_connect(database)) as connection:
        tables = _tables(connection)
        connection.set_authorizer(guard)
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS)
        try:
            return _fetch(connection.execute(sql), rows)
        except (sqlite3.Error, sqlite3.Warning) as error:
            connection.set_progress_handler(None, 0)
            if "interrupted" in str(error):
                raise StoreError(
                    f"the query was stopped after {seconds:g} seconds", "narrow it with WHERE, or give --timeout"
                ) from error
            raise _explained(connection, sql, error, guard.refused, tables) from error


def _connect(database: Path) -> sqlite3.Connection:
    database = database.resolve()
    if sqlite.writable(database):  # then SQLite can keep its index of the journal beside the file
        connection = sqlite3.connect(
            f"{database.as_uri()}?mode=ro", uri=True, timeout=sqlite.BUSY_SECONDS, isolation_level=None
        )
    else:
        connection = sqlite.connect(database, can_write=False)
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, CELL_BYTES)
    return connection


def _tables(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Table -> its columns."""
    try:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: [row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')] for name in names}
    except sqlite3.Error as error:
        raise translate(error) from error


def _fetch(cursor: sqlite3.Cursor, limit: int | None) -> Answer:
    columns = _distinct([item[0] for item in cursor.description or ()])
    found = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
    more = limit is not None and len(found) > limit
    return Answer(columns, tuple(found[:limit] if more else found), more)


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names, a repeated one with a number, so that each row can be an object."""
    found: list[str] = []
    for name in names:
        number = 2
        made = name
        while made in found:
            made, number = f"{name}_{number}", number + 1
        found.append(made)
    return tuple(found)


def _explained(
    connection: sqlite3.Connection, sql: str, error: Exception, refused: list[str], tables: dict[str, list[str]]
) -> EspError:
    """What is wrong with a statement, and where."""
    said = str(error)
    if refused or "readonly" in said or "query only" in said:
        begin = len(sql) - len(sql.lstrip())
        did = refused[0] if refused else "it would write"
        return ExpressionError(f"only SELECT is allowed: {did} is refused", "the database is only read", sql, begin)
    if "one statement" in said:
        end = sql.index(";") + 1 if ";" in sql else len(sql)
        return ExpressionError("there is more than one statement", "give one at a time", sql, end)
    if "incomplete input" in said:
        return ExpressionError("the statement ends too early", "complete it", sql, len(sql.rstrip()))
    if found := _NEAR.search(said):
        word = found["word"] or found["token"] or ""
        return ExpressionError(
            f"the statement is no SQL at {word!r}",
            "compare it with SQLite's SELECT",
            sql,
            _place(connection, sql, word),
        )
    if found := _NAMED.search(said):
        columns = sorted({name for listed in tables.values() for name in listed})
        known = {"table": sorted(tables), "column": columns}.get(found["kind"] or "", [])
        name = found["name"].rpartition(".")[2]
        hint = closest_hint(name, known) if known else "write TABLE.COLUMN"
        hint = "SQLite has no function of this name" if found["kind"] == "function" else hint
        return ExpressionError(said, hint, sql, _word(sql, name))
    if "binding" in said:
        place = re.search(r"[?:@$]", sql)
        what = "the statement has a parameter, and nothing is its value"
        return ExpressionError(what, "write the value in its place", sql, place.start() if place else 0)
    if "string or blob too big" in said:
        return StoreError(f"a value is larger than {CELL_BYTES:,} bytes", "select less of it")
    return ExpressionError(said[:1].lower() + said[1:].rstrip("."), "compare it with SQLite's SELECT", sql, 0)


def _place(connection: sqlite3.Connection, sql: str, word: str) -> int:
    """Where SQLite stopped: the first place of `word` after which the statement is already an error there."""
    for found in _places(sql, word):
        try:
            connection.execute(f"EXPLAIN {sql[: found + len(word)]}")
        except sqlite3.Error as error:
            again = _NEAR.search(str(error))
            if again and (again["word"] or again["token"]) == word:
                return found
    return max(0, sql.find(word))


def _places(sql: str, word: str) -> Iterator[int]:
    place = sql.find(word) if word else -1
    while place >= 0:
        yield place
        place = sql.find(word, place + 1)


def _word(sql: str, name: str) -> int:
    found = re.search(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", sql, re.IGNORECASE)
    return found.start() if found else 0
