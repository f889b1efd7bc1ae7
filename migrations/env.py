"""Runs the revisions on the connection that `espctl.store.migrate` made; it has foreign keys off, as rebuilds need.

No statement may reach that connection before `context.configure`: Alembic would take the transaction it opens for one
of the caller's, and never commit the upgrade.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from alembic import context

from espctl.store.models import Base, Moment


def keep_references(ctx: Any, step: Any, heads: Collection[Any], run_args: Any) -> None:
    """Undo a revision that leaves a row pointing nowhere: this runs before its transaction is committed."""
    broken = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        tables = ", ".join(sorted({row[0] for row in broken}))
        raise RuntimeError(
            f"{len(broken)} rows of {tables} would point nowhere at revision {', '.join(map(str, heads)) or 'base'}"
        )


def plain_type(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write a column of our own type into a new revision as what it is in SQL: models change, revisions must not."""
    return "sa.DateTime()" if kind == "type" and isinstance(item, Moment) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transaction_per_migration=not context.config.attributes["at_once"],
    transactional_ddl=True,  # SQLite can, once the driver leaves transactions alone; Alembic assumes that it does not
    render_item=plain_type,
    compare_type=True,
    compare_server_default=True,
    on_version_apply=keep_references,
)
with context.begin_transaction():
    context.run_migrations()
