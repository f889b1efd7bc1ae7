"""Filter expressions: what they mean, where they are wrong, and which index answers them."""

from __future__ import annotations

import contextlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from espctl.errors import ExpressionError
from espctl.store import expressions, labels, runs, selection
from espctl.store.engine import Store, open_store
from espctl.store.expressions import Comparison, Joined
from espctl.store.models import Run


@pytest.fixture(scope="module")
def store(generated_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Runs 0 and 1 with beta 1e-5, 2 and 3 with 1e-3, 4 of random; run 3 is tagged, 2 is named."""
    store = open_store(generated_once.copy(tmp_path_factory.mktemp("copy") / "home").home / "espctl.db")
    named, tagged = (run.id for run in runs.list_runs(store, sort="created")[2:4])
    labels.change(store, named, labels.named("star"))
    labels.change(store, named, labels.noted("50% done"))
    labels.change(store, tagged, labels.tagged(["keep"]))
    return store


def test_an_expression_is_read_as_it_is_bracketed() -> None:
    a, b, c = (Comparison(name, "=", (value,), 0, 0) for name, value in (("a", "1"), ("b", "2"), ("c", "x y")))

    def bare(found: expressions.Expression | None) -> expressions.Expression:
        if isinstance(found, Joined):
            return Joined(found.how, tuple(map(bare, found.parts)))
        assert found is not None
        return Comparison(found.field, found.sign, found.values, 0, 0)

    assert bare(expressions.parse("a=1 b=2 or c='x y'")) == Joined("or", (Joined("and", (a, b)), c))
    assert bare(expressions.parse("a=1 and (b=2 or c='x y')")) == Joined("and", (a, Joined("or", (b, c))))
    assert bare(expressions.parse("not a = 1")) == Joined("not", (a,))
    assert expressions.parse("  ") is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("method", 0), ("method=esp ipc>>10", 14), ("ipc>1,2", 4), ("(a=1", 4), ("a=1)", 3), ("a='x", 2), ("=3", 0),
        ("a=1 and and b=2", 12), ("a=1 or", 6), ("(" * 60 + "a=1", 51), ("a==1", 1), ("a=1 ; drop", 4),
    ],
)  # fmt: skip
def test_a_malformed_expression_says_where(text: str, place: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        expressions.parse(text)
    assert (caught.value.text, caught.value.place) == (text, place)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_a_mistake_of_its_user(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        selection.condition(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("method=esp", [0, 1, 2, 3]),
        ("method!=esp", [4]),
        ("method=random,dm", [4]),
        ("not method=random", [0, 1, 2, 3]),
        ("method=esp seed=1", [1, 3]),
        ("seed>0 or method=random", [1, 3, 4]),
        ("options.beta<1e-4", [0, 1]),
        ("options.beta=0.001", [2, 3]),
        ("options.beta!=0.001", [0, 1, 4]),
        ("options.beta=none", [4]),
        ("tag=keep", [3]),
        ("tag!=keep", [0, 1, 2, 4]),
        ("tag=", [0, 1, 2, 4]),
        ("tag~EE", [3]),
        ("name=star", [2]),
        ("name=", [0, 1, 3, 4]),
        ("name!=", [2]),
        ("name!=other", [0, 1, 2, 3, 4]),
        ("note~'50%'", [2]),
        ("note~5_", []),
        ("accuracy>12", [2, 3, 4]),
        ("accuracy<=10.6", [0]),
        ("created>2026-01-31T12:02:30", [3, 4]),
        ("created>'2026-01-31 12:02:30'", [3, 4]),
    ],
)
def test_what_passes(store: Store, text: str, expected: list[int]) -> None:
    assert [run.created.minute for run in runs.list_runs(store, expression=text, sort="created")] == expected


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("seed=1 metod=esp", 7, "did you mean 'method'?"),
        ("ipc=ten", 4, "whole number"),
        ("accuracy>high", 9, "number"),
        ("options.beta<low", 13, "number"),
        ("tag>a", 4, "tag=WORD"),
        ("created>yesterday", 8, "2026-01-31"),
        ("ipc<", 4, "number"),
    ],
)
def test_what_cannot_be_compared_says_where(store: Store, text: str, place: int, hint: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        runs.list_runs(store, expression=text)
    assert caught.value.place == place
    assert hint in caught.value.hint


def test_sorting_by_score_and_option(store: Store) -> None:
    by_score = [run.created.minute for run in runs.list_runs(store, sort="-accuracy")]
    assert by_score == [4, 3, 2, 1, 0]
    by_beta = [run.created.minute for run in runs.list_runs(store, sort="-options.beta", limit=2)]
    assert by_beta == [3, 2]
    assert runs.option_names(store) == ["beta", "steps"]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("state=finished", "ix_runs_state_created"),
        ("method=esp", "ix_runs_method_created"),
        ("dataset=digits method=esp ipc=1", "ix_runs_dataset_method_ipc_created"),
        ("name=star", "ix_runs_name"),
        ("tag=keep", "ix_tags_tag"),
        ("", "ix_runs_created"),
    ],
)
def test_simple_filters_are_answered_by_an_index(store: Store, text: str, index: str) -> None:
    typed = selection.condition(text)
    statement = select(Run.id).where(*([] if typed is None else [typed])).order_by(*selection.order("-created"))
    sql = str(statement.limit(20).compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    with closing(sqlite3.connect(store.database)) as connection:
        plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"))
    assert index in plan
    assert "SCAN runs" not in plan or text == ""


def test_a_run_is_found_by_its_name(store: Store) -> None:
    found = runs.find_run(store, "star")
    assert found.created.minute == 2
    assert runs.find_run(store, found.id) == found


def test_labels_are_the_same_after_a_rebuild(store: Store, tmp_path: Path) -> None:
    before = [(run, runs.tags_of(store, [run.id])) for run in runs.list_runs(store)]
    with open_store(tmp_path / "new.db", store.home) as again:
        runs.sync(again, store.home / "runs")
        assert [(run, runs.tags_of(again, [run.id])) for run in runs.list_runs(again)] == before
