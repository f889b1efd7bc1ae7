"""Every method, its learning rate set absurdly high, stops in the step where that shows and says what to lower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import pytest
import torch

from esp.core import Metrics, State, Task, condense
from esp.divergence import EXPLODED, GROWN, is_sound
from esp.errors import DivergedError
from esp.methods import METHODS
from esp.registry import resolve
from esp.rng import Key

SMALL: dict[str, Any] = {
    "steps": 6, "real_batch": 4, "segment": 2, "restart": 3, "start_max": 2, "student_steps": 2, "decoder_pretrain": 1,
    "train_images": 8, "test_batch": 2, "outer": 2, "inner": 1, "targets": 9,
}  # fmt: skip
LEARNING = [name for name in METHODS if name not in ("random", "herding", "kcenter")]
CASES = [(name, "pixels", "lr_pixels") for name in LEARNING if name != "kfs"]
CASES += [(name, "latent", option) for name in LEARNING for option in ("lr_codes", "lr_decoders")]


def make(name: str, **options: Any) -> Any:
    kind = resolve(METHODS, "method", name)
    wanted = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in {**SMALL, **options}.items() if key in wanted})


def follow(method: Any, task: Task) -> tuple[list[State], DivergedError]:
    seen: list[State] = []
    with pytest.raises(DivergedError) as caught:
        seen.extend(state for state, _ in condense(method, task, 0))
    return seen, caught.value


@pytest.mark.parametrize(("name", "stored", "option"), CASES, ids=["-".join(case) for case in CASES])
def test_an_absurd_learning_rate_is_noticed_and_named(
    make_task: Callable[..., Task], name: str, stored: str, option: str
) -> None:
    method = make(name, **{option: 1e30})
    seen, error = follow(method, make_task(stored, ipc=2))
    assert f"step {len(seen)} diverged" in error.message
    assert all(is_sound(state) for state in seen)
    assert f"--set {option}=... (it is 1e+30)" in error.hint
    named = {word.partition("=")[0] for word in error.hint.split() if "=..." in word}
    assert named <= {field.name for field in fields(method)}
    assert not named & ({"lr_codes", "lr_decoders"} if stored == "pixels" else {"lr_pixels"})


@pytest.mark.parametrize(("name", "option"), [("mtt", "lr_rate"), ("dc", "lr_network"), ("cafe", "lr_network")])
def test_so_is_that_of_a_network_or_a_student(make_task: Callable[..., Task], name: str, option: str) -> None:
    method = make(name, steps=40, outer=4, inner=3, **{option: 1e30})
    seen, error = follow(method, make_task())
    assert all(is_sound(state) for state in seen)
    assert f"--set {option}=..." in error.hint


@dataclass(frozen=True)
class Scripted:
    """Sets all pixels, and reports a loss, as told; the first step is number 1."""

    pixels: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    steps: int = 25
    lr_pixels: float = 0.5
    lr_codes: float = 0.1
    lr_none: float = 0.0
    default_parametrisation: ClassVar[str] = "pixels"
    needs_experts: ClassVar[bool] = False

    def check(self, task: Task) -> None:
        return None

    def init(self, task: Task, key: Key) -> State:
        return task.start("noise", key)

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        done = int(state["step"])
        value = self.pixels[done] if done < len(self.pixels) else 1.0
        loss = self.losses[done] if done < len(self.losses) else 1.0
        full = torch.full_like(state["set.pixels"], value)
        return {**state, "set.pixels": full, "step": state["step"] + 1}, {"loss": torch.tensor(loss)}


@pytest.mark.parametrize(
    ("pixels", "losses", "steps"),
    [
        ((0.99 * EXPLODED,), (), 25),
        ((1.0, 1.01 * EXPLODED), (), 1),
        ((1.0, float("nan")), (), 1),
        ((), (1e-9, 0.99 * GROWN), 25),
        ((), (1e-9, 1.01 * GROWN), 1),
        ((), (7.0, 7.1 * GROWN), 1),
        ((), (-7.0, -6.9 * GROWN, float("inf")), 2),
        ((), (float("nan"),), 0),
    ],
)
def test_the_bounds_are_the_stated_ones(
    make_task: Callable[..., Task], pixels: tuple[float, ...], losses: tuple[float, ...], steps: int
) -> None:
    method = Scripted(pixels, losses)
    if steps == method.steps:
        assert len(list(condense(method, make_task(), 0))) == 26
        return
    seen, error = follow(method, make_task())
    assert int(seen[-1]["step"]) == steps
    assert error.state is seen[-1]
    assert error.hint == "lower --set lr_pixels=... (it is 0.5)"


def test_where_only_every_tenth_step_is_looked_at_the_last_good_state_is_kept(make_task: Callable[..., Task]) -> None:
    task = replace(make_task(), device=torch.device("meta"))  # anything but a CPU; the script does not use it
    bad = Scripted(tuple(1.0 if step < 13 else float("inf") for step in range(25)))
    start = {"set.pixels": torch.zeros(2, 1), "step": torch.tensor(0)}
    seen: list[State] = []
    with pytest.raises(DivergedError, match="step 20 diverged") as caught:
        seen.extend(state for state, _ in condense(bad, task, 0, start))
    assert int(seen[-1]["step"]) == 19
    assert not is_sound(seen[-1])
    assert caught.value.state is not None
    assert int(caught.value.state["step"]) == 10
    assert is_sound(dict(caught.value.state))


@dataclass(frozen=True)
class Poisoned(Scripted):
    """Loses a tensor that is not the set: a network, or a moment of an optimiser."""

    name: str = "network"

    def step(self, task: Task, state: State, key: Key) -> tuple[State, Metrics]:
        state, metrics = super().step(task, state, key)
        bad = torch.tensor([0.0, float("inf") if int(state["step"]) == 3 else 1.0])
        return {**state, self.name: bad}, metrics


@pytest.mark.parametrize("name", ["network", "optimiser.v.pixels", "student"])
def test_a_lost_network_or_moment_is_noticed_though_the_set_is_sound(make_task: Callable[..., Task], name: str) -> None:
    seen, error = follow(Poisoned(name=name), make_task())
    assert error.message == f"step 3 diverged: {name} is not finite"
    assert error.state is seen[-1]
    assert int(seen[-1]["step"]) == 2
    assert not is_sound({**seen[-1], name: torch.tensor(float("nan"))})


@pytest.mark.parametrize("name", LEARNING)
def test_a_set_that_was_lost_is_noticed_in_the_next_step(make_task: Callable[..., Task], name: str) -> None:
    """As by a checkpoint of an older version: the step that reads it says so, whatever its mathematics makes of it."""
    for labels in ("fixed", "solved") if name == "kip" else ("",):
        method, task = make(name, **({"labels": labels} if labels else {})), make_task("latent", ipc=2)
        first = next(iter(condense(method, task, 0)))[0]
        lost = {key: torch.full_like(value, torch.nan) if key == "set.codes" else value for key, value in first.items()}
        with pytest.raises(DivergedError, match="step 1 diverged"):
            list(condense(method, task, 0, lost))
