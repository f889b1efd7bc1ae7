"""A network as a function of one vector theta [p]: what trajectories, subspaces and students are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from esp.networks import NETWORKS
from esp.registry import parse_spec, resolve
from esp.rng import Key


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
    """

    spec: str
    shape: tuple[int, int, int]
    classes: int

    @cached_property
    def _module(self) -> nn.Module:
        with torch.device("meta"):
            return self._make()

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self._module.named_parameters()}

    @cached_property
    def parameters(self) -> int:
        """p, the length of theta."""
        return sum(shape.numel() for shape in self._shapes.values())

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

    def _make(self) -> nn.Module:
        name, options = _parse(self.spec)
        module: nn.Module = resolve(NETWORKS, "network", name)(self.shape, self.classes, **options)
        return module

    def init(self, key: Key) -> Tensor:
        """Fresh weights theta [p] by the modules' own initialisation; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.integer())  # torch.manual_seed would reach CUDA as well
            module = self._make()
        return torch.cat([p.detach().reshape(-1) for p in module.parameters()])

    def tensors(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta [p] as the named parameters."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = torch.split(theta, sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def __call__(self, theta: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, d] and logits [n, classes] of normalised images [n, c, h, w] at theta [p]."""
        features, logits = functional_call(self._module, self.tensors(theta), (images,))
        return features, logits

    @property
    def has_levels(self) -> bool:
        """Whether `levels` works: the module has a method of that name."""
        return callable(getattr(self._module, "levels", None))

    def levels(self, theta: Tensor, images: Tensor) -> list[Tensor]:
        """Activations [n, d_l] of every level at theta [p], flattened; the last are the features."""
        tensors = {f"module.{name}": tensor for name, tensor in self.tensors(theta).items()}
        found: list[Tensor] = functional_call(_Levels(self._module), tensors, (images,))
        return [level.flatten(1) for level in found]


class _Levels(nn.Module):
    """A module whose forward pass is the `levels` of another."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module.levels(images)  # type: ignore[operator]


def build(spec: str, shape: tuple[int, int, int], classes: int) -> Network:
    """The network `spec` for images of `shape`; fails at once when the images do not fit it."""
    network = Network(canonical_spec(spec), shape, classes)
    _ = network.features
    return network
