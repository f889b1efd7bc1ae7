"""Questions in SQL to the database."""

from __future__ import annotations

from espctl.services.project import Project
from espctl.store import query as store_query
from espctl.store.query import Answer

ROWS = 10_000
SECONDS = 30.0


def ask(project: Project, sql: str, rows: int | None = ROWS, seconds: float = SECONDS) -> Answer:
    """The answer to a SELECT; values that are no text or numbers are shown in hexadecimal.

    Raises:
        StoreError: there is no database, or the query takes longer than `seconds`.
        ExpressionError: the statement is no SQL, names what there is not, or would write; and where.
    """
    found = store_query.ask(project.paths.database, sql, rows, seconds)
    shown = tuple(tuple(value.hex() if isinstance(value, bytes) else value for value in row) for row in found.rows)
    return Answer(found.columns, shown, found.more)
