"""Who works on which trial: claims are exclusive, and those of the dead are taken over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from espctl.errors import RunError
from espctl.services.tuning.plan import Plan, differences
from espctl.services.tuning.space import Dimension
from espctl.services.tuning.study import MAX_ATTEMPTS, Claim, Study, exists

SPACE = {"beta": Dimension("float", 1e-7, 1e-3, log=True), "segment": Dimension("int", 2, 20)}
FIRST = {"beta": 1e-5, "segment": 10}


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "dataset": "digits", "fingerprint": "f", "ipc": 1, "method": "esp", "preset": "paper", "network": "convnet3",
        "parametrisation": "", "seed": 0, "experts": "", "expert_count": 0, "options": {"restart": "5"}, "steps": 20,
        "held_out": 0.1, "protocol": "dsa", "protocol_hash": "h", "epochs": 50, "seeds": 1, "pruner": "median",
        "space": {name: dimension.describe() for name, dimension in SPACE.items()},
    }  # fmt: skip
    return Plan(**{**values, **changes})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "one", plan(), FIRST)


@pytest.fixture
def claim() -> Iterator[Callable[..., Any]]:
    """Claims a trial of a study, and lets go of it at the end of the test."""
    held: list[Claim] = []

    def take(study: Study, goal: int) -> Claim | None:
        if found := study.claim(goal):
            held.append(found)
        return found

    yield take
    for found in held:
        found.lock.close()


def test_the_first_trial_has_the_defaults_and_the_others_lie_in_the_space(study: Study, claim: Any) -> None:
    claims = [claim(study, 5) for _ in range(5)]
    assert claims[0].options == {"beta": "1e-05", "segment": "10"}
    for number, found in enumerate(claims):
        assert found.number == number
        assert 1e-7 <= float(found.options["beta"]) <= 1e-3
        assert 2 <= int(found.options["segment"]) <= 20
    assert len({found.options["beta"] for found in claims}) == 5


def test_no_trial_is_given_to_two(study: Study, claim: Any) -> None:
    other = Study(study.folder)
    claims = [claim(study, 3), claim(other, 3), claim(study, 3), claim(other, 3)]
    assert [found.number if found else None for found in claims] == [0, 1, 2, None]
    assert other.busy()


def test_a_trial_whose_worker_died_is_taken_over_as_it_was(study: Study, claim: Any) -> None:
    dead = claim(study, 2)
    alive = claim(study, 2)
    dead.lock.close()  # as the system does when a process is killed
    other = Study(study.folder)
    again = claim(other, 2)
    assert (again.number, again.options) == (dead.number, dead.options)
    assert claim(other, 2) is None
    for found, value in ((again, 0.5), (alive, 0.4)):
        other.tell(found, "complete", value)
    assert [(point.number, point.state, point.value) for point in study.points()] == [
        (0, "complete", 0.5),
        (1, "complete", 0.4),
    ]
    assert claim(study, 2) is None
    assert not study.busy()
    assert not list(study.folder.glob("trial-*.lock"))


def test_a_worker_that_died_while_it_asked_leaves_a_whole_trial(study: Study, claim: Any) -> None:
    claim(study, 3)
    with study.shared() as inner:
        inner.ask()  # nothing is suggested yet, and nobody has the lock
    found = claim(study, 3)
    assert found.number == 1
    assert found.options.keys() == SPACE.keys()
    study.tell(found, "complete", 0.1)
    assert study.points()[1].options == found.options


def test_a_trial_that_kills_its_worker_is_given_up_in_the_end(study: Study, claim: Any) -> None:
    for _ in range(MAX_ATTEMPTS):
        found = claim(study, 1)
        assert found.number == 0
        found.lock.close()
    assert claim(study, 1) is None
    [point] = study.points()
    assert (point.state, point.value) == ("failed", None)
    assert "killed" in str(point.reason)


def test_an_orderly_stop_is_no_failed_attempt(study: Study, claim: Any) -> None:
    for _ in range(MAX_ATTEMPTS + 2):
        found = claim(study, 1)
        study.release(found)
    assert study.points()[0].state == "running"


def test_the_same_study_draws_the_same_trials(tmp_path: Path, claim: Any) -> None:
    def options(name: str, seed: int, count: int = 12) -> list[dict[str, str]]:
        study, drawn = Study.create(tmp_path / name, plan(seed=seed), FIRST), []
        for value in range(count):  # beyond the random trials that TPE begins with
            found = claim(study, 12)
            drawn.append(found.options)
            study.tell(found, "complete", value / 12)
            study = Study(study.folder) if value == 5 else study
        return drawn

    first = options("a", 0)
    assert options("b", 0) == first
    assert options("c", 1, count=3)[1:] != first[1:3]


def test_a_low_intermediate_score_is_pruned(study: Study, claim: Any) -> None:
    for _ in range(5):
        found = claim(study, 10)
        assert not study.report(found.number, 1, 0.8)
        study.tell(found, "complete", 0.9)
    found = claim(study, 10)
    assert study.report(found.number, 1, 0.2)
    assert study.report(found.number, 1, 0.9), "a score that was noted before counts, after a resume too"
    study.tell(found, "pruned", None, "low")
    assert study.points()[5].reason == "low"


@pytest.mark.parametrize(("pruner", "pruned"), [("hyperband", True), ("none", False)])
def test_the_other_pruners(tmp_path: Path, claim: Any, pruner: str, pruned: bool) -> None:
    study, stopped = Study.create(tmp_path / pruner, plan(pruner=pruner), FIRST), []
    for value in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        found = claim(study, 8)
        stop = any(study.report(found.number, look, value) for look in (1, 2, 3))
        study.tell(found, "pruned" if stop else "complete", None if stop else value)
        stopped.append(stop)
    assert any(stopped) == pruned
    assert not stopped[0], "the first has nothing to be compared with"


def test_optuna_opens_the_storage_itself(study: Study, claim: Any) -> None:
    found = claim(study, 1)
    study.tell(found, "complete", 0.5)
    url = f"sqlite:///{study.database}"
    assert optuna.get_all_study_names(url) == ["one"]
    assert optuna.load_study(study_name="one", storage=url).best_value == 0.5


def test_a_creation_that_was_cut_short_is_made_whole(tmp_path: Path, claim: Any) -> None:
    folder = tmp_path / "cut"
    first = Study.create(folder, plan(), FIRST)
    first.database.rename(folder / "new.db")  # killed before the storage had its name
    assert not exists(folder)
    with pytest.raises(RunError, match="storage of the study cut is gone"):
        Study(folder)
    found = claim(Study.create(folder, plan(), FIRST), 1)
    assert found.options["beta"] == "1e-05"


def test_what_differs_between_two_plans_is_named() -> None:
    wider = {**plan().space, "segment": Dimension("int", 2, 30).describe()}
    assert differences(plan(), plan()) == []
    assert differences(plan(), plan(ipc=10)) == ["ipc is 1, not 10"]
    assert differences(plan(), plan(space=wider)) == ["segment is int(2,20), not int(2,30)"]
    assert differences(plan(), plan(protocol_hash="x")) == ["the content of protocol 'dsa' has changed"]
    assert differences(plan(), plan(dataset="x", fingerprint="x")) == ["dataset is 'digits', not 'x'"]
    assert differences(plan(), plan(options={})) == ["restart is 5, not away"]
