"""What the bench concludes from its measurements."""

from __future__ import annotations

from typing import Any

import pytest

from bench import variants
from bench.campaign import NORMS, PLANS


def line(name: str, seed: int, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """A measured variant of the norm; without an accuracy it diverged."""
    found = {
        "what": "norm", "name": name, "options": NORMS[name], "experts": 2, "seed": seed, "steps": 5,
        "protocol": "dsa@3", "network": "convnet3", "dataset": "digits", "judge": "held-out images",
        "accuracies": [] if accuracy is None else [accuracy], "inside": 0.25, "error": "",
    }  # fmt: skip
    return {**found, **changes}


NONE, LIGHT, SUMMED, RELATIVE = (
    "no L_proj, L_DM averaged", "L1, beta 1e-05, L_DM averaged", "no L_proj, L_DM summed",
    "relative, beta 30, L_DM summed",
)  # fmt: skip


def test_a_gain_is_over_the_same_seed_without_the_residual() -> None:
    lines = [
        line(NONE, 0, 0.20), line(NONE, 1, 0.40), line(LIGHT, 0, 0.21), line(LIGHT, 1, 0.43), line(LIGHT, 2, 0.9),
        line(SUMMED, 0, 0.50), line(RELATIVE, 0, 0.45), line(LIGHT, 0, 0.99, what="segment"),
    ]  # fmt: skip
    found = variants.gains(lines)
    assert found == {LIGHT: pytest.approx([0.01, 0.03]), RELATIVE: pytest.approx([-0.05])}
    text = variants.table(lines[:-1])
    assert f"| norm | {LIGHT} | 51.3 ± 35.2 | 3 x 1 | +2.0 ± 1.4 | 0.250 |" in text
    assert f"| norm | {RELATIVE} | 45.0 | 1 x 1 | -5.0 | 0.250 |" in text
    assert f"| norm | {NONE} | 30.0 ± 14.1 | 2 x 1 |  | 0.250 |" in text


def test_the_best_variant_has_the_most_seeds_and_did_not_diverge() -> None:
    lines = [line(NONE, 0, 0.3), line(NONE, 1, 0.3), line(LIGHT, 0, 0.5), line(LIGHT, 1, None), line(SUMMED, 0, 0.9)]
    assert variants.best_of(lines) == NORMS[NONE]
    assert variants.best_of([]) == {}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_plan_has_the_variants_to_compare_with(plan: Any) -> None:
    names = [variant.name for variant in plan.norms()]
    assert {NONE, SUMMED} <= set(names)
    assert all(plan.start_max(variant.options["segment"]) >= 0 for variant in plan.norms())
