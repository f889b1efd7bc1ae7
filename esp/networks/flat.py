"""A network as a function of one vector theta [p]: what trajectories, subspaces and students are made of.

Batch normalisation has a second vector, its statistics [b]: mean and variance of every channel that it normalises.
Training normalises by the batch and hands its moments out, for a running average that the trainer owns; everything
else looks through statistics that were frozen first, so that an image's features do not depend on its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from esp.errors import InputError
from esp.networks import NETWORKS
from esp.networks.norms import BatchNorm, pure
from esp.registry import parse_spec, resolve
from esp.rng import Key

P = ParamSpec("P")
R = TypeVar("R")


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    return parse_spec(NETWORKS, "network", spec, ("shape", "classes"))


def canonical_spec(spec: str) -> str:
    """The one way to write a network: options sorted, defaults left out."""
    name, options = _parse(spec)
    return ",".join([name, *(f"{k}={v}" for k, v in sorted(options.items()))])


@dataclass(frozen=True, eq=False)
class Network:
    """An architecture for one image shape and number of classes; it holds no weights.

    Attributes:
        spec: canonical spec.
        shape: (channels, height, width) of its images.
        classes: number of logits.
        frozen: statistics [b] that its batch normalisation looks through (`freeze`); None before.
    """

    spec: str
    shape: tuple[int, int, int]
    classes: int
    frozen: Tensor | None = None

    @cached_property
    def _modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """To look, to train, and to measure moments without Bessel's correction. On no device: they hold no numbers."""
        with torch.device("meta"):
            module = self._make()
        if not any(isinstance(layer, BatchNorm) for layer in module.modules()):
            return module, module, module
        return module, _by_batch(module, corrected=True), _by_batch(module, corrected=False)

    @property
    def _module(self) -> nn.Module:
        return self._modules[0]

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self._module.named_parameters()}

    @cached_property
    def _moments(self) -> dict[str, torch.Size]:
        return {name: buffer.shape for name, buffer in self._module.named_buffers()}

    @cached_property
    def parameters(self) -> int:
        """p, the length of theta."""
        return sum(shape.numel() for shape in self._shapes.values())

    @cached_property
    def statistics(self) -> int:
        """b, the length of the statistics of batch normalisation; 0 without any."""
        return sum(shape.numel() for shape in self._moments.values())

    @cached_property
    def features(self) -> int:
        """d, the length of a feature vector."""
        image = torch.empty(1, *self.shape, device="meta")
        features, _ = self._module(image)
        return int(features.shape[1])

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of a forward pass over one image (a multiply-add counts as two)."""
        with FlopCounterMode(display=False) as counter:
            self._module(torch.empty(1, *self.shape, device="meta"))
        return int(counter.get_total_flops())

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """A function that calls this network, as a program that `torch.compile` sees whole.

        What is made at its first use is made now: that takes a lock, which would break the program into pieces.
        """
        _ = self._modules, self._shapes, self._moments, self.statistics
        return torch.compile(function, dynamic=False)

    def _make(self) -> nn.Module:
        name, options = _parse(self.spec)
        module: nn.Module = resolve(NETWORKS, "network", name)(self.shape, self.classes, **options)
        return pure(module, self.spec)

    def init(self, key: Key) -> Tensor:
        """Fresh weights theta [p] by the modules' own initialisation; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.integer())  # torch.manual_seed would reach CUDA as well
            module = self._make()
        return torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    def first_statistics(self) -> Tensor:
        """Statistics [b] before any training: means 0 and variances 1."""
        parts = [
            torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)
            for name, shape in self._moments.items()
        ]
        return torch.cat([part.reshape(-1) for part in parts]) if parts else torch.empty(0)

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta [p] as the named parameters."""
        return _views(theta, self._shapes)

    def freeze(self, statistics: Tensor) -> Network:
        """The network that looks through statistics [b]: running ones, or those of `measure`; itself where b is 0."""
        if not self.statistics:
            return self
        frozen = copy.copy(self)  # with the modules that it has made, which are worth keeping
        object.__setattr__(frozen, "frozen", statistics)
        return frozen

    def measure(self, theta: Tensor, images: Tensor) -> Tensor:
        """Statistics [b] at theta [p] of a batch of images [n, c, h, w]; no graph.

        The network that they freeze sees this batch as training would.
        """
        with torch.no_grad():
            return self._train(self._modules[2], theta, images)[2]

    def __call__(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, d] and logits [n, classes] of normalised images [n, c, h, w] at theta [p].

        Raises:
            InputError: the network has batch normalisation, and was not frozen.
        """
        return self.at(theta, self.frozen, images)

    def at(self, theta: Tensor, statistics: Tensor | None, images: Tensor) -> tuple[Tensor, Tensor]:
        """As a call, through given statistics [b]; programs take them as an input, not as a part of themselves."""
        features, logits = functional_call(self._module, self._held(theta, statistics), (images,))
        return features, logits

    def train(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits, and moments [b] of the batch as running averages take them.

        Batch normalisation normalises by the batch here, whatever it is frozen by.
        """
        return self._train(self._modules[1], theta, images)

    def _train(self, module: nn.Module, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        held = self._held(theta, theta.new_empty(self.statistics))
        features, logits = functional_call(module, held, (images,))  # puts new buffers into `held`
        parts = [held[name].reshape(-1) for name in self._moments]
        return features, logits, torch.cat(parts) if parts else theta.new_empty(0)

    def _held(self, theta: Tensor, statistics: Tensor | None) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        if not self.statistics:
            return self.tensors(theta)
        if statistics is None:
            raise InputError(
                f"{self.spec} has batch normalisation, whose statistics were not frozen",
                "a method looks through task.frozen(theta, key), other code through network.freeze(statistics)",
            )
        return {**self.tensors(theta), **_views(statistics, self._moments)}

    @property
    def has_levels(self) -> bool:
        """Whether `levels` works: the module has a method of that name."""
        return callable(getattr(self._module, "levels", None))

    def levels(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """Activations [n, d_l] of every level at theta [p], flattened; the last are the features."""
        tensors = {f"module.{name}": tensor for name, tensor in self._held(theta, self.frozen).items()}
        found: list[Tensor] = functional_call(_Levels(self._module), tensors, (images,))
        return [level.flatten(1) for level in found]


class _Levels(nn.Module):
    """A module whose forward pass is the `levels` of another."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module.levels(images)  # type: ignore[operator]


def _by_batch(module: nn.Module, corrected: bool) -> nn.Module:
    """A copy with batch normalisation, and nothing else, in training mode."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, BatchNorm):
            layer.train().corrected = corrected
    return module


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Consecutive parts of a flat vector, by name."""
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def build(spec: str, shape: tuple[int, int, int], classes: int) -> Network:
    """The network `spec` for images of `shape`; fails at once when the images do not fit it."""
    network = Network(canonical_spec(spec), shape, classes)
    try:
        _ = network.features
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        # The message of a foreign factory stays out of the sentence: it can quote anything, the environment among it.
        raise InputError(
            f"network {spec!r} cannot be built for images of {'x'.join(map(str, shape))} ({type(error).__name__})",
            "give other options, or name a factory (shape, classes, **options) -> torch.nn.Module",
        ) from error
    return network
