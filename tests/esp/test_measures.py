"""HLR, IOR, LRS and ARS: hand-computed values, the ends of the scale, and what cannot be meant."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from esp import measures
from esp.errors import InputError

FRACTION = some.floats(0, 1)
GAIN = some.floats(-1, 1)


def test_differences_point_the_way_that_their_names_say() -> None:
    assert measures.hard_label_recovery(0.85, 0.63) == pytest.approx(0.22)
    assert measures.improvement_over_random(0.63, 0.14) == pytest.approx(0.49)


def test_lrs_by_hand() -> None:
    exponent = 0.5 * 0.49 - 0.5 * 0.22
    expected = (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))
    assert measures.label_robust_score(0.49, 0.22) == pytest.approx(expected)
    assert measures.label_robust_score(0.49, 0.22, weight=1) == measures.label_robust_score(0.49, -0.9, weight=1)


def test_ars_by_hand() -> None:
    expected = (math.exp(0.5 * 0.3 + 0.5 * 0.1) - math.exp(-1)) / (math.e - math.exp(-1))
    assert measures.augmentation_robust_score(0.3, 0.1) == pytest.approx(expected)


def test_the_ends_of_the_scale() -> None:
    assert measures.label_robust_score(1, -1) == pytest.approx(1)
    assert measures.label_robust_score(-1, 1) == pytest.approx(0)
    assert measures.augmentation_robust_score(1, 1) == pytest.approx(1)
    assert measures.augmentation_robust_score(-1, -1) == pytest.approx(0)


@given(GAIN, GAIN, FRACTION)
def test_scores_stay_on_the_scale_and_rise_with_the_gain(ior: float, hlr: float, weight: float) -> None:
    score = measures.label_robust_score(ior, hlr, weight)
    assert -1e-9 <= score <= 1 + 1e-9
    assert measures.label_robust_score(min(1.0, ior + 0.1), hlr, weight) >= score
    assert measures.label_robust_score(ior, max(-1.0, hlr - 0.1), weight) >= score


@pytest.mark.parametrize("value", [63.0, -0.1])
def test_percent_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="no fraction"):
        measures.improvement_over_random(value, 0.1)
    with pytest.raises(InputError, match="no fraction"):
        measures.hard_label_recovery(0.1, value)


def test_a_weight_beyond_the_unit_interval_is_refused() -> None:
    with pytest.raises(InputError, match="weight"):
        measures.label_robust_score(0.1, 0.1, weight=1.5)
