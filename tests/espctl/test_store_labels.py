"""Names, notes and tags: checked, kept in the folder, and never lost between processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from esp.errors import ArtifactError, InputError
from espctl.errors import RunError
from espctl.store import labels, runs
from espctl.store.engine import Store, open_store


@pytest.fixture
def store(generated: Any) -> Store:
    return open_store(generated.home / "espctl.db")


def first(store: Store) -> str:
    return runs.list_runs(store, sort="created")[0].id


def test_they_are_kept_in_the_folder(store: Store) -> None:
    run = first(store)
    labels.change(store, run, labels.tagged(["b", "a"]))
    labels.change(store, run, labels.named("star"))
    found = labels.change(store, run, labels.tagged(["c"], ["b"]))
    assert (found.name, found.tags) == ("star", ("a", "c"))
    written = json.loads((store.home / "runs" / run / "labels.json").read_text())
    assert written == {"name": "star", "note": None, "tags": ["a", "c"]}
    assert runs.run_detail(store, "star").tags == ("a", "c")
    assert runs.list_tags(store) == ["a", "c"]


@pytest.mark.parametrize("word", ["", "two words", "bell\x07", "a,b", "a/b", "-x", "(a)", "x" * 100])
def test_what_cannot_be_a_word(word: str) -> None:
    with pytest.raises(InputError, match="cannot be a tag"):
        labels.tagged([word])
    with pytest.raises(InputError, match="cannot be a name"):
        labels.named(word)


def test_a_name_means_one_run(store: Store) -> None:
    one, two = [run.id for run in runs.list_runs(store)[:2]]
    labels.change(store, one, labels.named("star"))
    with pytest.raises(RunError, match=f"'star' is taken by {one}"):
        labels.change(store, two, labels.named("star"))
    with pytest.raises(RunError, match="is taken by"):
        labels.change(store, two, labels.named(one))
    labels.change(store, one, labels.named(None))
    assert labels.change(store, two, labels.named("star")).name == "star"


def test_a_run_without_a_folder_or_with_a_damaged_file(store: Store) -> None:
    run = first(store)
    path = store.home / "runs" / run / "labels.json"
    path.write_text('{"tags": "keep"}')
    with pytest.raises(ArtifactError, match="'tags' must be a list of words"):
        labels.change(store, run, labels.tagged(["a"]))
    (store.home / "runs" / run).rename(store.home / "away")
    with pytest.raises(RunError, match="is gone"):
        labels.change(store, run, labels.tagged(["a"]))
    with pytest.raises(RunError, match="there is no run 'nobody'"):
        labels.change(store, "nobody", labels.tagged(["a"]))


def _tag(database: Path, run: str, words: list[str]) -> None:
    with open_store(database) as store:
        for word in words:
            labels.change(store, run, labels.tagged([word]))


def test_two_processes_lose_no_tag(store: Store) -> None:
    run = first(store)
    words = [[f"p{process}-{number}" for number in range(20)] for process in range(2)]
    started = [multiprocessing.get_context("spawn").Process(target=_tag, args=(store.database, run, w)) for w in words]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert runs.run_detail(store, run).tags == tuple(sorted(words[0] + words[1]))
    written = json.loads((store.home / "runs" / run / "labels.json").read_text())
    assert written["tags"] == sorted(words[0] + words[1])


def test_recording_an_outcome_keeps_a_label_that_came_in_between(store: Store) -> None:
    run = first(store)
    labels.change(store, run, labels.noted("seen"))
    runs.record_outcome(store, store.home / "runs" / run)
    assert runs.find_run(store, run).note == "seen"
