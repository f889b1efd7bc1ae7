"""Who needs a run: studies that tried it, runs made from it, and runs whose scores are compared with it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, String, cast, exists, func, select

from espctl.store.engine import Store
from espctl.store.models import Evaluation, Run, Study, Trial
from espctl.store.records import RunRecord

BASELINE = "random"
"""The method whose runs others are compared with."""


def users(store: Store, run: RunRecord, leaving: Collection[str] = ()) -> list[str]:
    """One phrase for everyone that needs a run, the runs of `leaving` left out."""
    with store.read() as session:
        studies = session.execute(
            select(Study.name, Trial.number).join(Study).where(Trial.run_id == run.id).order_by(Study.name)
        )
        found = [f"trial {number} of the study {study} is this run" for study, number in studies]
        # A request names a run by its whole id, as a value; `like` only spares parsing the requests that cannot.
        value = func.json_tree(Run.request).table_valued("type", "atom", name="value")
        made: Any = session.scalars(
            select(Run.id)
            .where(cast(Run.request, String).like(f'%"{run.id}"%'), Run.id != run.id)
            .where(exists().select_from(value).where(value.c.type == "text", value.c.atom == run.id))
            .order_by(Run.created)
        )
        found += [f"{other} was made from it" for other in made if other not in leaving]
        if run.method == BASELINE:
            found += [
                f"{other} is compared with it" for other in session.scalars(_compared(run)) if other not in leaving
            ]
    return found


def _compared(run: RunRecord) -> Select[Any]:
    """Runs of equal size, data set, network and seed that were scored in a way that the baseline was scored in."""
    theirs, own = Evaluation.__table__.alias("theirs"), Evaluation.__table__.alias("own")
    same = (theirs.c.protocol_hash == own.c.protocol_hash) & (theirs.c.network == own.c.network)
    beside = exists().where(theirs.c.run_id == Run.id, own.c.run_id == run.id, same)
    alike = (Run.dataset == run.dataset, Run.ipc == run.ipc, Run.seed == run.seed, Run.network == run.network)
    return select(Run.id).where(*alike, Run.method != BASELINE, beside).order_by(Run.created)
