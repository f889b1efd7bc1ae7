"""How a budget is divided, and what is measured for it; fixed paces stand for the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from espctl.services.estimating import probe
from espctl.services.estimating.probe import Pace
from espctl.services.project import Project as Opened
from espctl.services.reproduction import plan as plans
from espctl.services.reproduction import planner
from espctl.services.reproduction.gauge import Gauge, Trial
from espctl.services.reproduction.plan import Asked

ASKED = Asked("table1", "digits", 1, budget=60.0, network="convnet3,width=4")
MAKERS = ("random", "dm", "kip", "kfs", "esp")


@pytest.fixture(scope="module")
def gauge(finished: Any) -> Gauge:
    return Gauge(Opened.open({"home": finished.home}), ASKED, lambda _: None)


def paced(gauge: Gauge, label: str, pace: Pace, changed: dict[str, str] | None = None) -> Trial:
    trial = gauge.trial("digits", 1, label, "quick", changed)
    trial.__dict__["pace"] = pace
    return trial


def test_a_pace_counts_the_warm_up() -> None:
    pace = Pace(1.0, 2.0, 0.5, 10)
    assert [pace.seconds(steps) for steps in (0, 4, 10, 12)] == [1.0, 3.0, 6.0, 10.0]
    assert pace.times(2).seconds(12) == 20.0


def shares(gauge: Gauge, left: float, **paces: Pace) -> dict[str, tuple[Trial, int, str]]:
    whole = {("digits", 1, name): paced(gauge, name, pace) for name, pace in paces.items()}
    lower = {place: paced(gauge, place[2], trial.pace, {"real_batch": "64"}) for place, trial in whole.items()}
    return {place[2]: choice for place, choice in planner._shares(whole, lower, left).items()}


def test_what_one_method_does_not_need_is_for_the_others(gauge: Gauge) -> None:
    found = shares(gauge, 100.0, dm=Pace(0, 1.0), kfs=Pace(0, 0.001), dsa=Pace(0, 1.0))
    assert found["kfs"][1:] == (2500, "")  # 2.5 seconds
    assert (found["dm"][1], found["dsa"][1]) == (49, 48)  # 97.5 between them, what rounding leaves for the last
    assert found["dm"][2] == "real_batch=64 steps=49"
    assert found["dm"][0].method.steps == 49


def test_esp_gets_three_parts(gauge: Gauge) -> None:
    found = shares(gauge, 400.0, dm=Pace(0, 1.0), esp=Pace(0, 1.0))
    assert (found["dm"][1], found["esp"][1]) == (100, 300)


def test_a_warm_up_is_kept_and_the_least_is_done(gauge: Gauge) -> None:
    whole = paced(gauge, "kfs", Pace(0, 1.0, 0.01, 500))
    _, steps, _ = planner._choose(whole, whole, 55.0)
    assert steps == 550
    _, steps, _ = planner._choose(whole, whole, 0.0)
    assert steps == 500 + planner.LEAST_STEPS


def test_the_largest_that_fits() -> None:
    assert planner._largest(lambda count: count <= 437, 50, 1000) == 430
    assert planner._largest(lambda count: count <= 2000, 50, 1000) == 1000
    assert planner._largest(lambda _: False, 50, 1000) == 50


def test_segments_fit_the_experts(gauge: Gauge) -> None:
    made = planner.Planner(gauge.project, ASKED, lambda _: None)
    place = ("digits", 1, "esp")
    trial = gauge.trial(*place, "quick")
    experts = {planner._store(trial): plans.ExpertWork(*planner._store(trial), 1, 6, 64, 1.0)}
    fitted = made._fitted(place, trial, experts, {"real_batch": "8"})
    assert fitted.options == {"real_batch": "8", "segment": "1", "start_max": "5"}
    with pytest.raises(KeyError):
        made._fitted(place, trial, {}, {})


def test_networks_are_narrower_on_a_cpu_and_once_more_where_it_is_far_too_much(finished: Any) -> None:
    gauge = Gauge(Opened.open({"home": finished.home}), dataclasses.replace(ASKED, network=""), lambda _: None)
    assert [gauge.network("convnet3", level) for level in ("paper", "quick")] == ["convnet3", "convnet3,width=32"]
    gauge.halve()
    assert gauge.network("convnet3", "quick") == "convnet3,width=16"
    assert not gauge.can_halve
    on_gpu = Gauge(gauge.project, dataclasses.replace(ASKED, network="", device="cuda"), lambda _: None)
    assert on_gpu.network("convnet3", "quick") == "convnet3"


def test_every_kind_of_method_is_timed_without_experts(gauge: Gauge) -> None:
    small = {"kfs": {"decoder_pretrain": "3"}, "dm": {"real_batch": "8"}, "esp": {"real_batch": "8", "segment": "2"}}
    for name in MAKERS:
        pace = probe.condensation(
            gauge.trial("digits", 1, name, "quick", small.get(name)).method, task(gauge, name), 0.1
        )
        assert pace.start > 0
        assert (pace.step > 0) == (name != "random")
        assert (pace.warm_up > 0, pace.warm_steps) == ((True, 3) if name == "kfs" else (False, 0))


def task(gauge: Gauge, name: str) -> Any:
    return gauge.trial("digits", 1, name, "quick").task


def test_a_method_that_diverges_at_once_still_has_a_pace(gauge: Gauge) -> None:
    trial = gauge.trial("digits", 1, "dm", "quick", {"lr_pixels": "1e300", "real_batch": "8"})
    assert probe.condensation(trial.method, trial.task, 0.1).step > 0


def test_a_stand_in_is_an_expert_of_the_right_size(gauge: Gauge, tmp_path: Path) -> None:
    from esp.trajectory import open_trajectory

    there = task(gauge, "esp")
    found = open_trajectory(probe.stand_in(tmp_path, there.data, there.network, 4))
    assert (found.epochs, found.meta["fingerprint"]) == (4, there.data.fingerprint)
    assert found.segment(1, 3).shape == (4, there.network.parameters)


def test_crowding_is_between_one_and_the_processes() -> None:
    assert probe.crowding(1) == 1.0
    assert 1.0 <= probe.crowding(2) <= 2.0
