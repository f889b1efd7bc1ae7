"""A trial that was not worth going on with leaves a run that was pruned, and has not failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BEFORE = "state IN ('queued', 'running', 'interrupted', 'failed', 'finished')"
_AFTER = "state IN ('queued', 'running', 'interrupted', 'failed', 'pruned', 'finished')"


def upgrade() -> None:
    _allow(_AFTER)
    op.execute("UPDATE runs SET state = 'pruned' WHERE state = 'failed' AND error LIKE 'pruned: %'")
    op.execute("UPDATE runs SET error = substr(error, 9) WHERE state = 'pruned'")


def downgrade() -> None:
    op.execute("UPDATE runs SET error = 'pruned: ' || coalesce(error, '') WHERE state = 'pruned'")
    op.execute("UPDATE runs SET state = 'failed' WHERE state = 'pruned'")
    _allow(_BEFORE)


def _allow(states: str) -> None:
    """SQLite changes a check by making the table anew."""
    with op.batch_alter_table("runs", recreate="always") as batch:
        batch.drop_constraint(op.f("ck_runs_state"), type_="check")
        batch.create_check_constraint(op.f("ck_runs_state"), sa.text(states))
