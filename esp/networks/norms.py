"""Normalisation of activations: of each image alone (instance, group), or of a batch.

A factory of networks uses `torch.nn.BatchNorm2d` like everybody; `pure` then turns a module into what
`esp.networks.flat.Network` needs: a function of its tensors without a state of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the field's own abbreviation)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esp.errors import InputError

NORMS = ("instance", "batch", "group", "none")
GROUP = 32
"""Channels in a group."""

MOMENTUM = 0.1
"""How far running moments go towards those of a batch in each step of training, as in torch."""


class Norm(nn.Module):
    """Instance or group normalisation with a scale and a shift for each channel.

    Eager code takes torch's fused kernel. Under the compiler it is written with means: that fuses as well, and the
    forward-mode derivative of `F.group_norm`, which MTT takes, would stay slow there.
    """

    def __init__(self, channels: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c, h, w]."""
        if not torch.compiler.is_compiling():
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        n, c, h, w = x.shape
        grouped = x.reshape(n, self.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(2, keepdim=True) + self.eps)
        return (centred * scale).reshape(n, c, h, w) * self.weight.view(1, c, 1, 1) + self.bias.view(1, c, 1, 1)


class BatchNorm(nn.Module):
    """Batch normalisation whose moments come and go as tensors.

    In training mode it normalises by the moments of the batch and *replaces* its two buffers by them, which
    `functional_call` hands back to its caller. In evaluation mode it normalises by its buffers, channel by channel a
    straight line; so it is a function of each image alone, and cheap to differentiate in any mode.

    Attributes:
        corrected: whether the variance that it hands out has Bessel's correction, as torch's running averages have.
            Without, evaluation on the same batch gives what training gave.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        if not layer.track_running_stats or layer.momentum != MOMENTUM:
            raise InputError(
                "a network has a batch normalisation without running statistics, or with a momentum other than "
                f"{MOMENTUM}",
                "leave both as torch has them",
            )
        self.eps, self.corrected = layer.eps, True
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, ...] to [n, c, ...]."""
        if self.training:
            return self._by_batch(x)
        scale = torch.rsqrt(self.running_var + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.running_mean * scale
        shift = shift if self.bias is None else shift + self.bias
        column = (-1, *(1 for _ in x.shape[2:]))
        return x * scale.view(column) + shift.view(column)

    def _by_batch(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1]
        if count < 2:
            raise InputError(
                "batch normalisation needs more than one value of a channel, and got a batch of one image that has "
                "shrunk to one pixel",
                "change the batch size so that no single image is left over, or use norm=instance",
            )
        # One fused kernel gives all three; `F.batch_norm` would keep the moments to itself.
        out, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)
        variance = (inverse.detach() ** -2 - self.eps).clamp(min=0)
        self.running_mean = mean.detach()
        self.running_var = variance * (count / (count - 1)) if self.corrected else variance
        return out


def norm(kind: str, channels: int) -> nn.Module:
    """A normalisation of `kind`, one of `NORMS`, for activations [n, channels, h, w].

    Raises:
        InputError: there is no such kind, or the channels do not divide into groups.
    """
    if kind not in NORMS:
        raise InputError(f"norm={kind} is no normalisation", f"choose one of {', '.join(NORMS)}")
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = channels if kind == "instance" else max(1, channels // GROUP)
    if channels % groups:
        raise InputError(
            f"{channels} channels do not divide into groups of {GROUP}", f"choose a multiple of {GROUP}, or norm=batch"
        )
    return Norm(channels, groups)


def pure(module: nn.Module, name: str) -> nn.Module:
    """The same network in evaluation mode, with `BatchNorm` for torch's batch normalisation; changed in place.

    Evaluation mode switches dropout and stochastic depth off, for good: their random numbers would come from a
    generator that no seed of ours owns, and a function of weights and images must not draw any.

    Raises:
        InputError: the network keeps a state that is none of batch normalisation.
    """
    for parent in list(module.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm):
                setattr(parent, child, BatchNorm(layer))
    known = {id(buffer) for layer in module.modules() if isinstance(layer, BatchNorm) for buffer in layer.buffers()}
    if other := [key for key, buffer in module.named_buffers() if id(buffer) not in known]:
        raise InputError(
            f"network {name} keeps {other[0]!r}, which is neither a weight nor a moment of batch normalisation",
            "make it a parameter, or compute it in forward",
        )
    return module.eval()
