"""How a synthetic set is stored, what it decodes to, and what it costs (methods.md 13).

A synthetic set is a number of stored *units* for each class: an image, or a latent code. Each unit decodes to
`multiplicity` images, in the order class, unit, decoder. Everything that is needed to decode counts against the budget
of classes x ipc x channels x height x width numbers, the size of `ipc` plain images for each class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from esp.errors import BudgetError, InputError
from esp.optim import Tensors
from esp.registry import parse_spec, resolve
from esp.rng import Key

PARAMETRISATIONS: dict[str, str] = {
    "pixels": "esp.parametrisation:Pixels",
    "multiformation": "esp.multiformation:MultiFormation",
    "latent": "esp.parametrisation:Latent",
}

STAGES = 3
"""A decoder doubles the side this many times."""


@dataclass(frozen=True)
class Frame:
    """What a synthetic set is for: its classes, images per class, and image shape (channels, height, width)."""

    classes: int
    ipc: int
    shape: tuple[int, int, int]

    @property
    def budget(self) -> int:
        """Numbers that the set may store."""
        return self.classes * self.ipc * math.prod(self.shape)


class Parametrisation(Protocol):
    """A way to store a synthetic set; an immutable value whose fields are its options.

    Attributes:
        stores_images: whether the parameters are pixels, which can start from real images.
    """

    stores_images: ClassVar[bool]

    @property
    def frame(self) -> Frame:
        """What the set is for."""

    @property
    def units(self) -> int:
        """Units stored for each class."""

    @property
    def multiplicity(self) -> int:
        """Images that one unit decodes to."""

    @property
    def stored(self) -> int:
        """Numbers stored in all, decoders included."""

    def init(self, key: Key, real: Callable[[], Tensor] | None) -> Tensors:
        """Fresh parameters: from noise, or from `real()`, one image for each that they decode to, in their order."""

    def decode(self, parameters: Tensors, first: int, last: int) -> Tensor:
        """Normalised images [(last - first) * multiplicity, c, h, w] of the units `first:last` of the whole set."""


@dataclass(frozen=True)
class Pixels:
    """The images themselves: one tensor `pixels` [classes * ipc, c, h, w] in normalised pixel space."""

    frame: Frame
    stores_images: ClassVar[bool] = True

    @property
    def units(self) -> int:
        """Images stored for each class."""
        return self.frame.ipc

    @property
    def multiplicity(self) -> int:
        """An image is one image."""
        return 1

    @property
    def stored(self) -> int:
        """The whole budget."""
        return self.frame.budget

    def init(self, key: Key, real: Callable[[], Tensor] | None) -> Tensors:
        """Standard normal noise, or the real images."""
        if real is not None:
            return {"pixels": real().clone()}
        size = (self.frame.classes * self.frame.ipc, *self.frame.shape)
        return {"pixels": torch.randn(size, generator=key.generator())}

    def decode(self, parameters: Tensors, first: int, last: int) -> Tensor:
        """The images `first:last`."""
        return parameters["pixels"][first:last]


@dataclass(frozen=True)
class Latent:
    """Latent codes of every class and a few small decoders that all classes share (methods.md 13.4).

    `codes` [classes * units, code, h/8, w/8] are decoded by each of `decoders` stacks of three transposed convolutions
    (kernel 4, stride 2, padding 1, ReLU between them) with `hidden` channels. Sides that 8 does not divide are decoded
    larger and cropped. Options left at 0 are solved: the largest decoders of a ladder that take at most two fifths of
    the budget, and as many codes as the rest holds.
    """

    frame: Frame
    code: int = 0
    hidden: tuple[int, int] = (0, 0)
    decoders: int = 0
    stores_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.code, self.decoders, *self.hidden) < 0:
            raise InputError(
                "a latent set needs positive numbers of channels and decoders", "give 0 to have them solved"
            )
        if len(self.hidden) != STAGES - 1 or any(self.hidden) != all(self.hidden):
            raise InputError(
                f"hidden={self.hidden} does not name the channels between {STAGES} stages",
                "write two, such as hidden=12-8",
            )
        if not (self.code and all(self.hidden) and self.decoders):
            for name, value in zip(("code", "hidden", "decoders"), _solve(self), strict=True):
                object.__setattr__(self, name, value)
        if self.units < 1:
            raise BudgetError(
                f"{self.frame.budget} numbers cannot hold {self.decoders} decoders of {self.decoder_numbers} numbers "
                f"and one code of {self.code_numbers} for each of {self.frame.classes} classes",
                "give more images per class, or fewer or narrower decoders, or use pixels",
            )

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one code."""
        _, height, width = self.frame.shape
        return self.code, -(-height // 2**STAGES), -(-width // 2**STAGES)

    @property
    def code_numbers(self) -> int:
        """Numbers in one code."""
        return math.prod(self.code_shape)

    @property
    def decoder_numbers(self) -> int:
        """Weights and biases of one decoder."""
        channels = self._channels
        return sum(16 * a * b + b for a, b in pairwise(channels))

    @property
    def units(self) -> int:
        """Codes stored for each class: as many as fit beside the decoders."""
        return (self.frame.budget - self.decoders * self.decoder_numbers) // (self.frame.classes * self.code_numbers)

    @property
    def multiplicity(self) -> int:
        """Every decoder makes one image of a code."""
        return self.decoders

    @property
    def stored(self) -> int:
        """Codes, and the weights and biases of the decoders."""
        return self.frame.classes * self.units * self.code_numbers + self.decoders * self.decoder_numbers

    @property
    def _channels(self) -> tuple[int, ...]:
        return (self.code, *self.hidden, self.frame.shape[0])

    def init(self, key: Key, real: Callable[[], Tensor] | None) -> Tensors:
        """Codes from the standard normal distribution, decoders as PyTorch initialises transposed convolutions."""
        if real is not None:
            raise InputError("a latent set cannot start from real images", "start from noise, or use pixels")
        size = (self.frame.classes * self.units, *self.code_shape)
        tensors = {"codes": torch.randn(size, generator=key.fold("codes").generator())}
        generator = key.fold("decoders").generator()
        for stage, (a, b) in enumerate(pairwise(self._channels)):
            bound = 1 / math.sqrt(b * 16)
            for name, shape in (("weight", (self.decoders, a, b, 4, 4)), ("bias", (self.decoders, b))):
                tensors[f"decoders.{stage}.{name}"] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        return tensors

    def decode(self, parameters: Tensors, first: int, last: int) -> Tensor:
        """Images [(last - first) * decoders, c, h, w] of the codes `first:last`, all decoders at once."""
        codes = parameters["codes"][first:last]
        x = codes.repeat(1, self.decoders, 1, 1)
        for stage in range(STAGES):
            weight, bias = parameters[f"decoders.{stage}.weight"], parameters[f"decoders.{stage}.bias"]
            x = F.conv_transpose2d(x, weight.flatten(0, 1), bias.flatten(), stride=2, padding=1, groups=self.decoders)
            x = F.relu(x) if stage < STAGES - 1 else x
        channels, height, width = self.frame.shape
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width].reshape(-1, channels, height, width)


# code channels -> (hidden channels, decoders), largest first; each code width belongs to a range of images per class.
_LADDER: dict[int, list[tuple[tuple[int, int], int]]] = {
    64: [((32, 16), 6)],
    32: [((32, 16), 6), ((16, 12), 6)],
    12: [((12, 8), 6), ((8, 6), 4)],
    8: [((6, 4), 4), ((6, 4), 2)],
    4: [((4, 4), 2), ((3, 3), 2), ((3, 2), 1)],
    2: [((2, 2), 1), ((1, 1), 1)],
    1: [((1, 1), 1)],
}
_SHARE = 0.4  # of the budget, at most, for decoders


def _solve(latent: Latent) -> tuple[int, tuple[int, int], int]:
    """Code channels, hidden channels and number of decoders: given options are kept, the others are the ladder's."""
    widest = 12 if latent.frame.ipc < 5 else 32 if latent.frame.ipc < 25 else 64
    for code, rungs in _LADDER.items():
        if code > widest and not latent.code:
            continue
        for hidden, count in rungs:
            trial = (latent.code or code, latent.hidden if all(latent.hidden) else hidden, latent.decoders or count)
            if _fits(latent.frame, *trial):
                return trial
    raise BudgetError(
        f"{latent.frame.budget} numbers are too few for any decoder and one code for each of "
        f"{latent.frame.classes} classes",
        "give more images per class, or use pixels",
    )


def _fits(frame: Frame, code: int, hidden: tuple[int, int], decoders: int) -> bool:
    channels = (code, *hidden, frame.shape[0])
    weights = decoders * sum(16 * a * b + b for a, b in pairwise(channels))
    code_numbers = code * math.prod(-(-side // 2**STAGES) for side in frame.shape[1:])
    return weights <= _SHARE * frame.budget and weights + frame.classes * code_numbers <= frame.budget


def build(name: str, frame: Frame, options: dict[str, Any] | None = None) -> Parametrisation:
    """The parametrisation `name` for `frame`; refuses one that stores more than the budget.

    Raises:
        UnknownNameError: there is no such parametrisation.
        InputError: ipc below 1.
        BudgetError: it does not fit.
    """
    if frame.ipc < 1:
        raise InputError(f"{frame.ipc} images per class make no synthetic set", "give --ipc 1 or more")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    kind = resolve(PARAMETRISATIONS, "parametrisation", name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):  # a file may name anything: it is not called
        raise InputError(f"{name!r} is no parametrisation", "name a dataclass like those of esp.parametrisation")
    try:
        made: Parametrisation = kind(frame, **values)  # type: ignore[assignment, call-arg]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InputError(f"parametrisation {name} cannot be built with {values}", "give it other options") from error
    if made.stored > frame.budget:
        raise BudgetError(
            f"{made.stored} stored numbers exceed the budget of {frame.budget}",
            "give more images per class or a smaller set",
        )
    return made


def parse_parametrisation(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a spec such as `pixels`, `latent`, `latent,code=12,hidden=8-6,decoders=4`."""
    return parse_spec(PARAMETRISATIONS, "parametrisation", spec, ("frame",))


def options_of(parametrisation: Parametrisation) -> dict[str, Any]:
    """The resolved options of a parametrisation, for a request or a file."""
    values = {field.name: getattr(parametrisation, field.name) for field in dataclasses.fields(parametrisation)}  # type: ignore[arg-type]
    values.pop("frame")
    return values


def labels(parametrisation: Parametrisation) -> Tensor:
    """Class of every decoded image: int64 [classes * units * multiplicity], classes in order."""
    count = parametrisation.units * parametrisation.multiplicity
    return torch.arange(parametrisation.frame.classes).repeat_interleave(count)


def decode_all(parametrisation: Parametrisation, parameters: Tensors) -> Tensor:
    """Every image of the set, [classes * units * multiplicity, c, h, w], without a graph."""
    with torch.no_grad():
        return parametrisation.decode(parameters, 0, parametrisation.frame.classes * parametrisation.units)
