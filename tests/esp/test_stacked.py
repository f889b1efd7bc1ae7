"""Networks that are trained as one program are those that are trained alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esp import artifact, augment
from esp.cutmix import cutmix, draw_cut, mix_each
from esp.data.dataset import Dataset
from esp.errors import DivergedError, InputError
from esp.evaluation import DSA, IDC, KIP2NN, Evaluator, Score
from esp.expert_stack import build_stack
from esp.experts import Plan, build
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.rng import Key
from esp.stacked import Stack, accuracies, bytes_each, halved, require_stackable, stackable
from esp.training import Recipe, Snapshot, Trainer, accuracy
from esp.trajectory import open_trajectory

CPU = torch.device("cpu")
EVERYTHING = Recipe(4, 5, 0.05, 0.9, 1e-3, (0.5,), 0.3, True, mode="sequence", cutmix=0.5)
PLAIN = Recipe(3, 7, 0.02)
KEYS = [Key(seed) for seed in range(3)]
SCALES = [1.0, 0.5, 2.0]


def starts(trainer: Trainer, kind: torch.dtype) -> list[Snapshot]:
    return [
        replace(s, theta=s.theta.to(kind), velocity=s.velocity.to(kind), statistics=s.statistics.to(kind))
        for s in (trainer.start(key) for key in KEYS)
    ]


def both(
    network: Network, recipe: Recipe, data: Dataset, kind: torch.dtype
) -> tuple[list[list[Snapshot]], list[list[Any]]]:
    """Trajectories of the members, each alone; and those of the stack."""
    trainer = Trainer(network, recipe, data.flips, CPU)

    def prepare(images: Tensor) -> Tensor:
        return data.normalise(images).to(kind)

    given, real = starts(trainer, kind), (data.train_images, data.train_labels, prepare)
    alone = [
        list(trainer.epochs(start, *real, key, scale)) for start, key, scale in zip(given, KEYS, SCALES, strict=True)
    ]
    stacked = [together.snapshots() for together in Stack(trainer).epochs(given, *real, KEYS, SCALES)]
    return alone, [list(member) for member in zip(*stacked, strict=True)]


@pytest.mark.parametrize("spec", ["convnet3,width=4", "convnet3,width=4,norm=batch"])
@pytest.mark.parametrize("recipe", [EVERYTHING, PLAIN, Recipe(2, 8, 0.1, loss="mse", schedule="cosine")])
def test_members_are_the_networks_alone(spec: str, recipe: Recipe, data: Dataset) -> None:
    network = build_network(spec, data.shape, data.num_classes)
    for kind, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        alone, stacked = both(network, recipe, data, kind)
        for one, member in zip(alone, stacked, strict=True):
            assert [s.epoch for s in member] == [s.epoch for s in one]
            for name in ("theta", "velocity", "statistics"):
                found, wanted = (torch.stack([getattr(s, name) for s in states]) for states in (member, one))
                torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
            assert [s.loss for s in member] == pytest.approx([s.loss for s in one], rel=1e-4)
        assert not torch.equal(stacked[0][-1].theta, stacked[1][-1].theta)


@pytest.mark.parametrize("mode", ["single", "sequence"])
def test_augmentation_of_a_stack_is_that_of_each_batch_to_the_bit(mode: Any, network: Network) -> None:
    images = torch.rand(8, 5, 3, 8, 8, generator=Key(1).generator())
    trainer = Trainer(network, Recipe(1, 5, 0.1, mode=mode), True, CPU)
    draws = [trainer.draw(5, Key(seed)) for seed in range(8)]
    assert len({int(draw[-2 if mode == "sequence" else 0].operation[0]) for draw in draws}) > 2
    found = augment.apply_each(draws, images)
    for i, draw in enumerate(draws):
        assert torch.equal(found[i], augment.apply(draw, images[i]))
    assert augment.apply_each([(), ()], images) is images


def test_cutmix_of_a_stack_is_that_of_each_batch_to_the_bit() -> None:
    images, targets = torch.rand(6, 5, 3, 8, 8), torch.rand(6, 5, 4)
    cuts = [draw_cut(5, (8, 8), 0.5, Key(seed).generator()) for seed in range(6)]
    assert any(cuts)
    assert not all(cuts)
    x, y = mix_each(images, targets, cuts)
    for i in range(6):
        wanted = cutmix(images[i], targets[i], 0.5, Key(i).generator())
        assert torch.equal(x[i], wanted[0])
        assert torch.equal(y[i], wanted[1])


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what crosses between the host and the device, which here is one without numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: Counter[str] = Counter()
        self.looks = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        # A number that torch has wrapped crosses as an argument of the operation and waits for nothing.
        if {x.device.type for x in inputs if x.ndim} | {x.device.type for x in outputs} == {"cpu", "meta"}:
            self.crossings[function.__name__] += 1
        self.looks += "local_scalar" in function.__name__ and inputs[0].device.type == "meta"
        return found


@pytest.mark.parametrize(("recipe", "each"), [(EVERYTHING, 5), (PLAIN, 2)])
def test_a_step_waits_for_nothing_and_sends_only_what_was_drawn(recipe: Recipe, each: int, data: Dataset) -> None:
    # A tensor on `meta` has no numbers: whoever asked for one, or mixed in a tensor of the host, would raise here.
    network = build_network("convnet3,width=4,norm=batch", data.shape, data.num_classes)
    trainer = Trainer(network, replace(recipe, cutmix=recipe.cutmix and 1.0), data.flips, torch.device("meta"))
    begin = [trainer.start(key) for key in KEYS]
    epochs = Stack(trainer).epochs(begin, data.train_images, data.train_labels, data.normalise, KEYS, SCALES)
    next(epochs)  # data sets travel once
    watch = Watch()
    with watch:
        together = next(epochs)
    batches = -(-len(data.train_images) // recipe.batch)
    assert watch.crossings == {"_to_copy.default": 1 + each * batches}  # the order, and what each step drew
    assert watch.looks == 0
    assert {x.device.type for x in vars(together).values() if isinstance(x, Tensor)} == {"meta"}


def test_a_member_that_diverges_leaves_the_others_alone(network: Network, data: Dataset) -> None:
    trainer = Trainer(network, PLAIN, data.flips, CPU)
    begin, real = starts(trainer, torch.float32), (data.train_images, data.train_labels, data.normalise)
    wild = [1.0, 1e30, 1.0]
    for together in Stack(trainer).epochs(begin, *real, KEYS, wild):
        first, second, third = together.snapshots()
    assert isinstance(second, DivergedError)
    with pytest.raises(DivergedError, match=second.message):
        list(trainer.epochs(begin[1], *real, KEYS[1], 1e30))
    for member, key, start in ((first, KEYS[0], begin[0]), (third, KEYS[2], begin[2])):
        *_, wanted = trainer.epochs(start, *real, key)
        assert isinstance(member, Snapshot)
        torch.testing.assert_close(member.theta, wanted.theta, rtol=0, atol=1e-5)


def test_accuracies_are_those_of_each_network(data: Dataset) -> None:
    network = build_network("convnet3,width=4,norm=batch", data.shape, data.num_classes)
    thetas = torch.stack([network.init(key) for key in KEYS])
    seen = torch.stack([network.measure(theta, data.normalise(data.train_images[:5])) for theta in thetas])
    images = data.test_images, data.test_labels, data.normalise
    found = accuracies(network, thetas, seen, *images, 4)
    assert found == [accuracy(network.freeze(s), theta, *images, 4) for theta, s in zip(thetas, seen, strict=True)]
    assert len(set(found)) > 1


class Peeking(nn.Module):
    """A network of one's own; `how` says what it does that one program for many may not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.drop, self.head = how, nn.Dropout(), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.drop(x.flatten(1))
        if self.how == "random":
            features = features + torch.randn_like(features)
        if self.how == "value" and features.mean().item() > 0:
            features = features * 2
        return features, self.head(features)


def peeking(shape: tuple[int, int, int], classes: int, how: str = "") -> nn.Module:
    return Peeking(how)


def test_what_cannot_be_stacked_is_refused(data: Dataset) -> None:
    def made(how: str) -> Network:
        return Network(f"{__name__}:peeking,how={how}", data.shape, data.num_classes)

    assert stackable(made("nothing"))  # dropout is switched off in every network
    for how in ("random", "value"):
        assert not stackable(made(how))
    with pytest.raises(InputError, match="cannot be trained as a stack"):
        require_stackable(made("random"))
    with pytest.raises(InputError, match="cannot be trained as a stack"):
        Stack(Trainer(made("value"), PLAIN, True, CPU))


def test_memory_of_a_member_grows_with_the_batch(network: Network) -> None:
    small, large, larger = (bytes_each(network, batch) for batch in (8, 16, 24))
    assert larger - large == large - small > 8 * 4 * 3 * 8 * 8
    assert small > 6 * 4 * network.parameters


def test_work_that_does_not_fit_is_halved() -> None:
    tried: list[int] = []

    def work(members: Sequence[int]) -> list[int]:
        tried.append(len(members))
        if len(members) > 2:
            raise MemoryError
        return [member * 10 for member in members]

    assert halved(work, [1, 2, 3, 4, 5]) == [10, 20, 30, 40, 50]
    assert tried == [5, 3, 2, 1, 2]
    with pytest.raises(ZeroDivisionError):
        halved(lambda _: [1 // 0], [1, 2])
    with pytest.raises(MemoryError):
        halved(lambda _: work([1, 2, 3]), [1])


def equal_experts(one: Path, other: Path) -> None:
    """Two trajectory files that say the same, up to rounding."""
    found, wanted = artifact.load(one), artifact.load(other)
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-5)
    curves = [meta.pop("curve") for meta in (found.meta, wanted.meta)]
    assert found.meta == wanted.meta
    for here, there in zip(*curves, strict=True):
        assert here["epoch"] == there["epoch"]
        assert here["accuracy"] == pytest.approx(there["accuracy"], abs=0.1)
        assert here["loss"] == (there["loss"] and pytest.approx(there["loss"], rel=1e-4))


@pytest.fixture(scope="module", params=["convnet3,width=4", "convnet3,width=4,norm=batch"])
def alone(request: Any, plan: Plan, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, list[Path]]:
    network = build_network(request.param, data.shape, data.num_classes)
    plan, folder = replace(plan, network=network), tmp_path_factory.mktemp("alone")
    return plan, [build(plan, number, data, folder, CPU) for number in range(3)]


def test_stacked_experts_are_those_that_are_built_alone(alone: Any, data: Dataset, tmp_path: Path) -> None:
    plan, wanted = alone
    heard: list[tuple[int, int]] = []
    paths = build_stack(plan, [0, 1, 2], data, tmp_path, CPU, on_epoch=lambda n, epoch, *_: heard.append((n, epoch)))
    for one, other in zip(paths, wanted, strict=True):
        equal_experts(one, other)
    assert sorted(heard) == [(n, epoch) for n in range(3) for epoch in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in wanted]
    before = [path.read_bytes() for path in paths]
    assert build_stack(plan, [0, 1, 2], data, tmp_path, CPU) == paths
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_stack_goes_on_where_it_was_interrupted(alone: Any, data: Dataset, tmp_path: Path, number: int) -> None:
    plan, wanted = alone

    def stop(member: int, epoch: int, *_: float) -> None:
        if (member, epoch) == (number, 3):
            raise KeyboardInterrupt

    def stop_alone(epoch: int, *_: float) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(plan, 2, data, tmp_path, CPU, on_epoch=stop_alone)  # begun alone, and ahead of the others
    with pytest.raises(KeyboardInterrupt):
        build_stack(plan, [0, 1, 2], data, tmp_path, CPU, on_epoch=stop if number < 2 else stop_early)
    assert len(list(tmp_path.glob("*.partial"))) == 3
    for one, other in zip(build_stack(plan, [0, 1, 2], data, tmp_path, CPU), wanted, strict=True):
        equal_experts(one, other)
    assert not list(tmp_path.glob("*.partial"))


def stop_early(member: int, epoch: int, *_: float) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_after_the_last_epoch_loses_nothing(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []

    def stop(member: int, epoch: int, *_: float) -> None:
        heard.append((member, epoch))
        if epoch == 5:
            raise KeyboardInterrupt

    for _ in range(2):  # the first is interrupted with each of the two
        with pytest.raises(KeyboardInterrupt):
            build_stack(plan, [0, 1], data, tmp_path, CPU, on_epoch=stop)
    assert len(build_stack(plan, [0, 1], data, tmp_path, CPU, on_epoch=stop)) == 2
    assert Counter(epoch for _, epoch in heard) == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2}
    assert not list(tmp_path.glob("*.partial"))


@dataclass(frozen=True)
class Cramped(Dataset):
    """A data set on a machine that holds so many images at once."""

    most: int = 0
    seen: tuple[list[int], ...] = ([],)

    def normalise(self, images: Tensor) -> Tensor:
        self.seen[0].append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return super().normalise(images)


def test_a_stack_that_does_not_fit_is_halved(alone: Any, data: Dataset, tmp_path: Path) -> None:
    plan, wanted = alone
    small = Cramped(**vars(data), most=16, seen=([],))
    for one, other in zip(build_stack(plan, [0, 1, 2], small, tmp_path, CPU), wanted, strict=True):
        equal_experts(one, other)
    assert set(small.seen[0]) >= {24, 16, 8}


def test_experts_that_diverge_do_not_stop_the_others(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    wild = replace(plan, recipe=replace(plan.recipe, lr=1e30))
    with pytest.raises(DivergedError, match="epoch 1"):
        build_stack(wild, [0, 1], data, tmp_path, CPU)
    assert not list(tmp_path.glob("*.safetensors"))


def scored(data: Dataset, protocol: Any, spec: str, **changes: Any) -> Evaluator:
    network = build_network(spec, data.shape, data.num_classes)
    images, labels = data.normalise(data.train_images[:12]), data.train_labels[:12]
    return Evaluator(network, replace(protocol, **changes), data, images, labels, CPU, 8, False)


CUT = {"checks": 2, "large": (), "steps": 0}


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        (DSA, {}),
        (IDC, {}),
        (IDC, {"select": "held-out", "lrs": (0.01, 0.02)}),
        (KIP2NN, {"recipe": replace(KIP2NN.recipe, epochs=4)}),
    ],
)
def test_scores_of_a_stack_are_those_of_each_seed(protocol: Any, changes: dict[str, Any], data: Dataset) -> None:
    recipe = replace(protocol.recipe, epochs=4, batch=5)
    evaluator = scored(data, protocol, "convnet3,width=4,norm=batch", **{**CUT, "recipe": recipe, **changes})
    heard: list[tuple[int, int]] = []
    found = evaluator.scores([3, 5], lambda seed, epoch: heard.append((seed, epoch)))
    for seed, score in zip([3, 5], found, strict=True):
        wanted = evaluator.score(seed)
        assert isinstance(score, Score)
        assert score.curve == wanted.curve
        assert score.train_loss == pytest.approx(wanted.train_loss, rel=1e-3)
        assert score.lr == pytest.approx(wanted.lr)
        assert replace(score, train_loss=0.0, lr=0.0) == replace(wanted, train_loss=0.0, lr=0.0)
    assert {epoch for _, epoch in heard} == set(range(1, 4 * max(1, len(evaluator.protocol.lrs)) + 1))
    assert {seed for seed, _ in heard} == {3, 5}


def test_a_seed_that_diverges_is_told_and_the_others_are_scored(data: Dataset) -> None:
    evaluator = scored(data, DSA, "convnet3,width=4", recipe=replace(DSA.recipe, epochs=4, lr=1e30), **CUT)
    found = evaluator.scores([0, 1])
    for seed, error in enumerate(found):
        assert isinstance(error, DivergedError)
        with pytest.raises(DivergedError, match=error.message):
            evaluator.score(seed)


def test_a_stacked_score_that_does_not_fit_is_made_in_halves(data: Dataset) -> None:
    recipe = replace(DSA.recipe, epochs=2)
    whole, halves = (scored(data, DSA, "convnet3,width=4", recipe=recipe, **CUT) for _ in range(2))
    narrow = Narrow("convnet3,width=4", data.shape, data.num_classes)
    halves.trainer = Trainer(narrow, halves.trainer.recipe, data.flips, CPU)
    first, second = whole.scores([0, 1, 2]), halves.scores([0, 1, 2])
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Score)
        assert isinstance(other, Score)
        assert other.curve == one.curve
    assert narrow.refused


class Narrow(Network):
    """A network of which this machine trains two at once."""

    @cached_property
    def refused(self) -> list[int]:
        return []

    def train(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if theta.device.type == "cpu" and torch._C._functorch.is_batchedtensor(theta):
            members = torch._C._functorch.get_unwrapped(theta).shape[0]
            if members > 2:
                self.refused.append(members)
                raise torch.OutOfMemoryError
        return super().train(theta, images)


def test_the_trajectory_of_a_stacked_expert_can_be_read(plan: Plan, data: Dataset, tmp_path: Path) -> None:
    paths = build_stack(replace(plan, dtype="bfloat16"), [4, 7], data, tmp_path, CPU)
    assert [open_trajectory(path).meta["number"] for path in paths] == [4, 7]
    assert open_trajectory(paths[0]).segment(0, 2).shape == (3, plan.network.parameters)
