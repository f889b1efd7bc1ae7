"""Batch normalisation: statistics that come and go as tensors, in training, in tests and in matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esp import artifact
from esp.core import Method, State, Task, condense
from esp.data.dataset import Dataset
from esp.derivatives import Derivatives
from esp.errors import InputError
from esp.evaluation import Evaluator, Protocol
from esp.experts import Plan, build
from esp.methods import METHODS
from esp.methods._matching import View
from esp.networks.densenet import densenetidc
from esp.networks.flat import Network
from esp.networks.flat import build as build_network
from esp.networks.resnet import resnet10
from esp.registry import resolve
from esp.rng import Key
from esp.training import Recipe, Snapshot, Trainer, accuracy
from esp.trajectory import Experts, open_trajectory

CPU = torch.device("cpu")
CONVNET = "convnet3,norm=batch,width=4"
SHAPE = (3, 8, 8)
EVERYTHING = Recipe(4, 7, 0.05, 0.9, 1e-3, (0.5,), 0.3, True, mode="sequence", cutmix=0.5)


@pytest.fixture(scope="module")
def batch_network() -> Network:
    return build_network(CONVNET, SHAPE, 3)


@pytest.fixture(scope="module")
def batch_experts(batch_network: Network, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    plan, folder = Plan(batch_network, Recipe(4, 8, 0.02)), tmp_path_factory.mktemp("experts")
    return Experts((open_trajectory(build(plan, 0, data, folder, CPU)),))


@pytest.fixture
def batch_task(make_task: Callable[..., Task], batch_network: Network, batch_experts: Experts) -> Callable[..., Task]:
    return lambda stored="pixels", **changes: make_task(stored, network=batch_network, experts=batch_experts, **changes)


def noise(*shape: int) -> Tensor:
    """float64, the same in any order of the tests."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def run(network: Network, recipe: Recipe, data: Dataset, start: Snapshot | None = None) -> list[Snapshot]:
    trainer = Trainer(network, recipe, data.flips, CPU)
    begin = trainer.start(Key(0)) if start is None else start
    return [begin, *trainer.epochs(begin, data.train_images, data.train_labels, data.normalise, Key(0))]


@pytest.mark.parametrize(("spec", "factory"), [("resnet10,width=4", resnet10), ("densenetidc,growth=2", densenetidc)])
def test_training_and_testing_are_those_of_torch(data: Dataset, spec: str, factory: Callable[..., nn.Module]) -> None:
    # In float64: deep networks at a single pixel amplify the last digits.
    network, images = build_network(spec, SHAPE, 3), data.normalise(data.train_images).double()
    trainer = Trainer(network, Recipe(3, 8, 0.02, 0.9, 5e-4, augmentation="none"), data.flips, CPU)
    theta, statistics = network.init(Key(0)).double(), network.first_statistics().double()
    start = Snapshot(0, theta, torch.zeros_like(theta), None, statistics)
    states = [start, *trainer.epochs(start, images, data.train_labels, lambda x: x, Key(0))]
    module = factory(SHAPE, 3, int(spec[-1])).double()
    module.load_state_dict(network.tensors(theta), strict=False)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    test = data.normalise(data.test_images).double()
    for epoch in range(3):
        module.train()
        for rows in torch.split(torch.randperm(24, generator=Key(0).fold("epoch", epoch, "order").generator()), 8):
            optimiser.zero_grad()
            logits = module(images[rows])[1]
            F.cross_entropy(logits, data.train_labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        module.eval()
        now = states[epoch + 1]
        moments = [value.flatten() for name, value in module.named_buffers() if value.is_floating_point()]
        torch.testing.assert_close(now.statistics, torch.cat(moments), rtol=1e-7, atol=1e-9)
        found = network.freeze(now.statistics)(now.theta, test)[1]
        torch.testing.assert_close(found, module(test)[1], rtol=1e-7, atol=1e-9)


def test_training_goes_on_from_any_snapshot_to_the_same_bits(batch_network: Network, data: Dataset) -> None:
    states = run(batch_network, EVERYTHING, data)
    assert len({tuple(state.statistics.tolist()) for state in states}) == 5
    for state in states:
        last = run(batch_network, EVERYTHING, data, state)[-1]
        assert torch.equal(last.theta, states[-1].theta)
        assert torch.equal(last.statistics, states[-1].statistics)


def test_networks_without_it_have_no_statistics(network: Network, data: Dataset) -> None:
    last = run(network, EVERYTHING, data)[-1]
    assert (network.statistics, last.statistics.shape) == (0, (0,))
    assert network.freeze(torch.ones(3)) is network
    assert network.first_statistics().shape == network.measure(last.theta, torch.zeros(2, *SHAPE)).shape == (0,)


def test_a_network_is_not_used_before_it_is_frozen(batch_network: Network, batch_task: Callable[..., Task]) -> None:
    theta, images = batch_network.init(Key(0)), torch.zeros(2, *SHAPE)
    task = batch_task()
    for use in (batch_network, batch_network.levels, task.derivatives().features):
        with pytest.raises(InputError, match="statistics were not frozen"):
            use(theta, images)
    frozen = task.frozen(theta, Key(1))
    assert frozen.derivatives().features(theta, images).shape == (2, batch_network.features)
    with pytest.raises(InputError, match="statistics were not frozen"):
        task.derivatives().features(theta, images)  # freezing changes nothing but the copy


@pytest.mark.parametrize("spec", [CONVNET, "resnet10,width=4", "densenetidc,growth=2"])
def test_a_measured_network_sees_its_batch_as_training_does(spec: str) -> None:
    network = build_network(spec, SHAPE, 3)
    theta, images = network.init(Key(0)).double(), 3 + 2 * noise(6, *SHAPE)
    frozen = network.freeze(network.measure(theta, images))
    together = network.train(theta, images)[1]
    torch.testing.assert_close(frozen(theta, images)[1], together, rtol=1e-7, atol=1e-9)
    alone = torch.cat([frozen(theta, image[None])[1] for image in images])
    torch.testing.assert_close(alone, frozen(theta, images)[1], rtol=1e-7, atol=1e-9)
    assert not torch.allclose(network.train(theta, images[:3])[1], together[:3], rtol=1e-2)


@pytest.mark.parametrize("spec", [CONVNET, "resnet10,width=4"])
def test_mixed_pullback_through_frozen_statistics_is_double_backward(spec: str) -> None:
    network = build_network(spec, SHAPE, 3)
    theta, images = network.init(Key(0)).double(), noise(5, *SHAPE)
    targets = F.one_hot(torch.tensor([0, 1, 2, 2, 1]), 3).double()
    frozen = network.freeze(network.measure(theta, images))
    direction, weights = noise(len(theta)), noise(5, network.features)
    leaf, pixels = theta.clone().requires_grad_(), images.clone().requires_grad_()
    features, logits = frozen(leaf, pixels)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), leaf, create_graph=True)
    (expected,) = torch.autograd.grad(gradient @ direction + (features * weights).sum(), pixels)
    derivatives = Derivatives(frozen)
    found = derivatives.mixed_pullback(theta, direction, images, targets, weights)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(derivatives.parameter_gradient(theta, images, targets)[0], gradient.detach())
    other = derivatives.frozen(network.freeze(2 * network.measure(theta, images)))
    assert not torch.allclose(other.mixed_pullback(theta, direction, images, targets, weights), expected, rtol=0.01)


def test_the_compiler_takes_it_whole(batch_network: Network) -> None:
    theta, images = batch_network.init(Key(0)).double(), noise(4, *SHAPE)
    statistics = batch_network.measure(theta, images)
    for function, arguments in (
        (batch_network.at, (theta, statistics, images)),
        (batch_network.train, (theta, images)),
    ):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


SMALL = {"steps": 3, "real_batch": 6, "segment": 2, "restart": 2, "start_max": 2, "student_steps": 2}
SMALL |= {"decoder_pretrain": 1, "train_images": 12, "test_batch": 4, "outer": 2, "inner": 2}
PLAIN = ("random", "kip")
"""Look through no network."""


def make(name: str, **options: Any) -> Method:
    kind = resolve(METHODS, "method", name)
    known = {field.name for field in fields(kind) if field.init}
    method: Method = kind(**{key: value for key, value in {**SMALL, **options}.items() if key in known})
    return method


def states(method: Method, task: Task, state: State | None = None) -> list[State]:
    return [found for found, _ in condense(method, task, 0, state)]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in PLAIN])
def test_every_method_matches_through_it_and_resumes_to_the_same_bits(
    batch_task: Callable[..., Task], tmp_path: Path, name: str
) -> None:
    method, stored = make(name), getattr(resolve(METHODS, "method", name), "only_parametrisation", "pixels")
    whole = states(method, batch_task(stored))
    assert all(value.isfinite().all() for value in whole[-1].values())
    for state in whole[:-1]:
        artifact.save(tmp_path / "state", state, {})
        last = states(method, batch_task(stored), artifact.load(tmp_path / "state").tensors)[-1]
        assert last.keys() == whole[-1].keys()
        assert all(torch.equal(last[key], value) for key, value in whole[-1].items())


@pytest.mark.parametrize("name", ["dm", "dsa", "esp", "cafe", "idc", "mtt"])
def test_chunks_change_nothing(batch_task: Callable[..., Task], name: str) -> None:
    # Small rates: differences in the last digits must not grow over the steps.
    method = make(name, steps=2, lr_pixels=0.01, gradient="tesla", real_batch=5)
    whole, parts = (states(method, batch_task(ipc=4, chunk=chunk))[-1] for chunk in (512, 3))
    moved = (whole["set.pixels"] - states(method, batch_task(ipc=4))[0]["set.pixels"]).abs().max()
    assert moved > 0
    assert (whole["set.pixels"] - parts["set.pixels"]).abs().max() < 1e-3 * moved


def test_frozen_statistics_are_of_real_images_and_named_by_a_key(batch_task: Callable[..., Task]) -> None:
    task = batch_task()
    theta = task.network.init(Key(0))
    one, same, other = (task.frozen(theta, Key(seed)).network.frozen for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert torch.equal(one, same)
    assert one.shape == (task.network.statistics,)
    images, _ = task.real([0, 1, 2], 16, Key(0))  # all 8 of each class, in an order of the key
    assert torch.equal(one, task.network.measure(theta, images))
    torch.testing.assert_close(one, other)
    view = View(task.frozen(theta, Key(0)), {}, ())
    assert view.task.trainer(EVERYTHING) is task.trainer(EVERYTHING)


def test_an_expert_keeps_its_statistics(batch_network: Network, batch_experts: Experts, data: Dataset) -> None:
    (expert,) = batch_experts.trajectories
    states_ = run_of_expert(batch_network, data)
    for state in states_:
        assert torch.equal(expert.statistics(state.epoch), state.statistics)
    seen, last = batch_network.freeze(expert.statistics(4)), expert.segment(4, 0)[0]
    found = accuracy(seen, last, data.test_images, data.test_labels, data.normalise, 4)
    assert found == expert.meta["curve"][-1]["accuracy"]
    assert expert.path.stat().st_size >= Plan(batch_network, Recipe(4, 8, 0.02)).bytes


def run_of_expert(network: Network, data: Dataset) -> list[Snapshot]:
    """What the expert of `batch_experts` went through."""
    key, trainer = Key(0).fold("expert", 0), Trainer(network, Recipe(4, 8, 0.02), data.flips, CPU)
    start = trainer.start(key)
    return [start, *trainer.epochs(start, data.train_images, data.train_labels, data.normalise, key)]


def test_an_expert_without_it_has_no_such_tensor(experts: Experts) -> None:
    expert = experts.trajectories[0]
    assert artifact.load(expert.path).tensors.keys() == {"theta"}
    assert "statistics" not in expert.meta
    assert expert.statistics(2).shape == (0,)


def test_an_expert_that_was_stopped_goes_on_to_the_same_bytes(
    batch_network: Network, batch_experts: Experts, data: Dataset, tmp_path: Path
) -> None:
    def stop(epoch: int, loss: float, accuracy: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    plan = Plan(batch_network, Recipe(4, 8, 0.02))
    with pytest.raises(KeyboardInterrupt):
        build(plan, 0, data, tmp_path, CPU, on_epoch=stop)
    path = build(plan, 0, data, tmp_path, CPU)
    assert path.read_bytes() == batch_experts.trajectories[0].path.read_bytes()


def test_herding_looks_through_the_statistics_of_its_expert(
    batch_task: Callable[..., Task], batch_experts: Experts
) -> None:
    task, expert = batch_task(), batch_experts.trajectories[0]
    seen = task.network.freeze(expert.statistics(4))
    rows = task.class_rows[1]
    features = seen(expert.segment(4, 0)[0], task.images(rows))[0].double()
    nearest = rows[(features.mean(0) - features).norm(dim=1).argmin()]
    chosen = states(make("herding"), task)[0]["set.pixels"]
    torch.testing.assert_close(chosen[2], task.images(nearest[None])[0])


def test_a_score_is_that_of_the_running_statistics(batch_network: Network, data: Dataset) -> None:
    recipe = Recipe(3, 8, 0.02, augmentation="none")
    images, labels = data.normalise(data.train_images), data.train_labels
    score = Evaluator(batch_network, Protocol("own", recipe, checks=1), data, images, labels, CPU, 7, False).score(0)
    trainer, key = Trainer(batch_network, recipe, data.flips, CPU), Key(0).fold("evaluate")
    *_, last = trainer.epochs(trainer.start(key), images, labels, lambda x: x, key)
    seen = batch_network.freeze(last.statistics)
    wanted = accuracy(seen, last.theta, data.test_images, data.test_labels, data.normalise, 100)
    assert score.accuracy == wanted


class Own(nn.Module):
    """A network of one's own, with whatever torch offers."""

    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU(), nn.Flatten())
        self.last = nn.Sequential(nn.Linear(4 * 36, 5), extra)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.last(self.body(x))
        return features, self.head(features)


def own_dropout(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Own(nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Dropout(0.5)))


def own_momentum(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Own(nn.BatchNorm1d(5, momentum=0.5))


def own_buffer(shape: tuple[int, int, int], classes: int) -> nn.Module:
    module = Own(nn.Identity())
    module.register_buffer("table", torch.zeros(3))
    return module


def own_pixel(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Own(nn.BatchNorm1d(5))


def test_a_network_of_ones_own_may_use_what_torch_has() -> None:
    network = build_network(f"{__name__}:own_dropout", SHAPE, 3)
    assert network.statistics == 2 * (4 + 5)
    theta, images = network.init(Key(0)), noise(6, *SHAPE).float()
    before = torch.get_rng_state()
    one, two = (network.train(theta, images)[1] for _ in range(2))
    assert torch.equal(one, two)  # no dropout
    assert torch.equal(before, torch.get_rng_state())
    module = own_dropout(SHAPE, 3)
    module.load_state_dict(network.tensors(theta), strict=False)
    module.get_submodule("last.1.1").eval()
    torch.testing.assert_close(one, module(images)[1])


@pytest.mark.parametrize(
    ("name", "match"), [("own_momentum", "momentum other than 0.1"), ("own_buffer", "keeps 'table'")]
)
def test_a_state_that_would_be_lost_is_refused(name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        build_network(f"{__name__}:{name}", SHAPE, 3)


def test_a_single_value_has_no_variance(data: Dataset) -> None:
    network = build_network(f"{__name__}:own_pixel", SHAPE, 3)
    with pytest.raises(InputError, match="more than one value of a channel"):
        run(network, replace(EVERYTHING, batch=23), data)  # 24 images: one is left over
