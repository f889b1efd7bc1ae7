"""Evaluation protocols: those of the field, and how one's own is made of one of them (methods.md 4 and 9.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from esp import augment
from esp.errors import InputError, UnknownNameError
from esp.files import canonical, sha256
from esp.protocols import PROTOCOLS
from esp.registry import resolve
from esp.training import Recipe, described

LrOf = Literal["number", "learned", "stable"]
Select = Literal["last", "held-out"]
SELECTED = "+held-out"
"""What the name of a protocol ends with when the score is chosen on held-out training images."""


@dataclass(frozen=True)
class Protocol:
    """How a synthetic set is scored.

    Attributes:
        name: what tables call it.
        recipe: how each network is trained.
        checks: evenly spaced looks at the test set, the last epoch included.
        large: (images, fraction): sets of more images than this train for the fraction of the epochs, so that huge
            decoded sets do not get ten times the steps.
        steps: the length of the training in steps, whatever the number of images; 0 for `recipe.epochs`.
        lr_of: what `recipe.lr` multiplies: 1 (`number`), the rate that was `learned` with the set, or the largest
            `stable` rate of gradient descent at the initial weights.
        fallback_lr: the learning rate of sets without a learned one; 0 refuses them.
        network: spec of the network that belongs to the protocol; empty where any does.
        select: `last`, the accuracy after the last epoch is the score; or `held-out`, that of the look that is best on
            held-out training images.
        held_out: fraction of each class that is held out for that.
        lrs: learning rates among which the selection chooses; empty for that of the recipe.
    """

    name: str
    recipe: Recipe
    checks: int = 4
    large: tuple[tuple[int, float], ...] = ((5_000, 0.5), (10_000, 0.3))
    steps: int = 0
    lr_of: LrOf = "number"
    fallback_lr: float = 0.0
    network: str = ""
    select: Select = "last"
    held_out: float = 0.1
    lrs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise InputError("a protocol needs at least one look at the test set", "give checks=1 or more")
        if self.lr_of not in get_args(LrOf) or self.select not in get_args(Select):
            raise InputError(
                f"a protocol has no lr_of={self.lr_of} with select={self.select}",
                f"choose one of {', '.join(get_args(LrOf))}, and one of {', '.join(get_args(Select))}",
            )
        if self.steps < 0 or self.fallback_lr < 0 or not 0 < self.held_out < 1 or min(self.lrs, default=1.0) <= 0:
            raise InputError(
                f"a protocol cannot have steps={self.steps}, fallback_lr={self.fallback_lr}, "
                f"held_out={self.held_out} and lrs={list(self.lrs)}",
                "give numbers that are not negative, a fraction between 0 and 1, and learning rates above 0",
            )
        if self.lrs and self.select == "last":
            raise InputError("learning rates to choose among need a selection", 'add select = "held-out"')

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name everything about the protocol but its name.

        Fields that came later count only where they are not at their defaults: older scores keep their digits.
        """
        body = described(self, always=("checks", "large"), never=("name", "recipe"))
        return sha256(canonical({**body, "name": None, "recipe": self.recipe.describe()}))[:12]

    def with_epochs(self, epochs: int) -> Protocol:
        """The protocol cut to `epochs`; its name says so."""
        if epochs == self.recipe.epochs and not self.steps:
            return self
        base, plus, selection = self.name.partition("+")
        name = f"{base.partition('@')[0]}@{epochs}{plus}{selection}"
        return replace(self, name=name, steps=0, recipe=replace(self.recipe, epochs=epochs))

    def with_selection(self, lrs: tuple[float, ...] = ()) -> Protocol:
        """The protocol with the score chosen on held-out training images; its name says so."""
        base, _, _ = self.name.partition("+")
        return replace(self, name=f"{base}{SELECTED}", select="held-out", lrs=lrs or self.lrs)

    def for_images(self, count: int) -> Recipe:
        """The recipe for a set of `count` images."""
        if self.steps:
            return replace(self.recipe, epochs=max(1, -(-self.steps // -(-count // self.recipe.batch))))
        fraction = min([share for images, share in self.large if count > images], default=1.0)
        return replace(self.recipe, epochs=max(1, round(self.recipe.epochs * fraction)))


# VICO's loop runs one epoch more than it says, and drops the rate after epoch E // 2 + 1 by making a new optimiser.
DSA = Protocol("dsa", Recipe(1001, 256, 0.01, 0.9, 5e-4, milestones=(0.502,), gamma=0.1, reset_momentum=True))
DC = Protocol("dc", replace(DSA.recipe, epochs=301, milestones=(0.506,), augmentation="none"))
MTT = Protocol("mtt", replace(DSA.recipe, lr=1.0), lr_of="learned")
IDC = Protocol(
    "idc",
    Recipe(
        1000,
        64,
        0.01,
        0.9,
        5e-4,
        milestones=(2 / 3, 5 / 6),
        gamma=0.2,
        mode="sequence",
        cutmix=0.5,
        augmentation="color_crop_flip_scale_rotate",
    ),
)
KIP2NN = Protocol(
    "kip2nn",
    Recipe(5000, 100, 1.0, 0.9, 1e-3, augmentation="none", loss="mse", schedule="cosine"),
    large=(),
    steps=5000,
    lr_of="stable",
    network="kipnet",
)


def protocol(name: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> Protocol:
    """The protocol `name`, `name@EPOCHS` for a cut one, or either with `+held-out` for one that selects.

    Args:
        name: of the table, or of `own`.
        own: protocols of one's own, name -> table as for `derive`.

    Raises:
        UnknownNameError: there is no such protocol.
        InputError: EPOCHS is not a positive number, or one's own protocol makes no sense.
    """
    base, _, selection = name.partition("+")
    base, at, epochs = base.partition("@")
    found: Protocol = derive(base, own[base], own) if own and base in own else _built_in(base, own or {})
    if at and (not epochs.isdecimal() or len(epochs) > 10 or int(epochs) < 1):
        raise InputError(f"protocol {name!r} does not say a number of epochs", f"write {base}@300, or {base} alone")
    found = found.with_epochs(int(epochs)) if at else found
    if "+" in name and f"+{selection}" != SELECTED:
        raise InputError(f"protocol {name!r} does not say how to select", f"write {base}{SELECTED}, or {base} alone")
    return found.with_selection() if "+" in name else found


def _built_in(name: str, own: Mapping[str, Any]) -> Protocol:
    found = resolve({**PROTOCOLS, **dict.fromkeys(own, "")}, "protocol", name)
    if not isinstance(found, Protocol):
        raise InputError(f"{name!r} is not a protocol", "name a value that is an esp.evaluation.Protocol")
    return found


def values_of(found: Protocol) -> dict[str, Any]:
    """Every field of a protocol but its name, those of its recipe among them: the keys of one's own."""
    recipe = {field.name: getattr(found.recipe, field.name) for field in fields(Recipe)}
    rest = {field.name: getattr(found, field.name) for field in fields(Protocol)}
    return {**recipe, **{name: value for name, value in rest.items() if name not in ("name", "recipe")}}


def derive(name: str, table: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]] | None = None) -> Protocol:
    """A protocol of one's own.

    Args:
        name: what tables will call it; not that of a built-in protocol.
        table: `base`, the name of another protocol, and the keys of `values_of` that differ from it. `lr` may be
            `learned` or `stable`, short for that `lr_of` with a factor of 1.
        own: the other protocols of one's own, which may be its base.

    Raises:
        UnknownNameError: an unknown key or base.
        InputError: the name cannot be used, or a value is of the wrong type or out of range; the sentence names it.
    """
    _require_name(name)
    others = {key: value for key, value in (own or {}).items() if key != name}  # nothing is its own base
    if not isinstance(table.get("base"), str):
        raise InputError(f"protocol {name!r} does not say what it is based on", 'add a line such as base = "dsa"')
    base = protocol(table["base"], others)
    known, changes = values_of(base), dict(table)
    del changes["base"]
    if isinstance(changes.get("lr"), str):
        if changes["lr"] not in ("learned", "stable"):
            raise InputError(
                f"'lr' of protocol {name!r} must be a number, learned or stable, not {changes['lr']!r}",
                "correct that line",
            )
        changes = {**changes, "lr_of": changes["lr"], "lr": 1.0}
    elif "lr" in changes:
        changes.setdefault("lr_of", "number")
    if "epochs" in changes:
        changes.setdefault("steps", 0)
    for key, value in changes.items():
        if key not in known:
            raise UnknownNameError(f"key of protocol {name}", key, known)
        changes[key] = _typed(value, known[key], f"{key!r} of protocol {name!r}")
        _require_range(key, changes[key], name)
    try:
        recipe = replace(base.recipe, **{key: changes.pop(key) for key in list(changes) if hasattr(base.recipe, key)})
        return replace(base, name=name, recipe=recipe, **changes)
    except InputError as error:
        raise InputError(f"protocol {name!r}: {error.message}", error.hint) from error


def _require_name(name: str) -> None:
    if name in PROTOCOLS:
        raise InputError(f"{name!r} is a built-in protocol", "give your own another name")
    if not (name and name.isascii() and all(c.isalnum() or c in "._-" for c in name)):
        raise InputError(f"{name!r} cannot name a protocol", "use letters, digits, dots, dashes and underscores")


def _typed(value: Any, like: Any, what: str) -> Any:
    """`value` if it is of the type of `like`; lists become tuples, whole numbers floats where those are wanted."""
    kinds: dict[type, tuple[tuple[type, ...], str]] = {
        bool: ((bool,), "true or false"),
        int: ((int,), "a whole number"),
        float: ((int, float), "a finite number"),
        str: ((str,), "text"),
        tuple: ((list, tuple), "a list"),
    }
    kind: type = type(like)
    fits, needed = kinds[kind]
    finite = not isinstance(value, int | float) or abs(value) <= _LARGEST
    if not isinstance(value, fits) or not finite or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{what} must be {needed}, not {value!r}", "correct that line")
    if kind is tuple:
        items: list[Any] = list(value)  # type: ignore[call-overload]
        return tuple(_item(item, what) for item in items)
    return float(value) if kind is float else value  # type: ignore[arg-type]


def _item(value: Any, what: str) -> Any:
    """One entry of a list: a number, or of `large` a pair of images and a fraction."""
    if not what.startswith("'large'"):
        return _typed(value, 0.0, f"a number in {what}")
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"{what} must be a list of pairs, not {value!r}", "write such as [[5000, 0.5]]")
    return _typed(value[0], 0, f"a number of images in {what}"), _typed(value[1], 0.0, f"a fraction in {what}")


_LARGEST = 10**12
_RANGES: dict[str, tuple[float, float]] = {
    "momentum": (0, 0.9999),
    "weight_decay": (0, 10),
    "gamma": (0, 1),
    "cutmix": (0, 1),
    "milestones": (0, 1),
}


def _require_range(key: str, value: Any, name: str) -> None:
    """Refuse numbers that no training has, and augmentations that do not exist."""
    low, high = _RANGES.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, tuple) and key in _RANGES else [value] if key in _RANGES else []:
        if not low <= number <= high:
            raise InputError(f"{key!r} of protocol {name!r} cannot be {number:g}", f"give {low:g} to {high:g}")
    if key == "augmentation":
        augment.parse(value)
