"""Presets: the constants of every method for a data set, a number of images per class and a network.

`paper` holds what was published for such a cell; where nothing was, the nearest rule, and its origin says `proposed`.
`quick` is the same cut down to minutes or hours. Sources: methods.md, sections 5 to 18. This module imports no torch,
so that presets can be listed and shown at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from esp.errors import UnknownNameError
from esp.spaces import NORMALISED

PRESETS: dict[str, str] = {
    "paper": "the published constants of the cell, or the nearest rule",
    "quick": "the same with far fewer steps, for a first look",
}

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (100, 2)}
"""DC's images per class -> image updates for each network (outer), and epochs between two of them (inner)."""

Options = dict[str, Any]
Origin = Literal["published", "proposed"]


@dataclass(frozen=True)
class Preset:
    """What a method is run with in one cell.

    Attributes:
        name: `paper` or `quick`.
        options: the method's options that are not its defaults.
        space: pixel space of the real data: `normalised` or `zca`.
        origin: `published` when a paper or its released code states the constants for this very cell.
        note: where they come from, one phrase.
        experts: how many experts of how many epochs it is meant for; None for methods without.
    """

    name: str
    options: Mapping[str, Any]
    space: str = NORMALISED
    origin: Origin = "proposed"
    note: str = ""
    experts: tuple[int, int] | None = None


def loops(ipc: int) -> tuple[int, int]:
    """DC's outer and inner loops for a number of images per class: `LOOPS`, on straight lines between its entries.

    Beyond the last entry they stay as they are there.
    """
    here = min(ipc, max(LOOPS))
    low, high = max(known for known in LOOPS if known <= here), min(known for known in LOOPS if known >= here)
    share = (here - low) / max(1, high - low)
    outer, inner = (a + share * (b - a) for a, b in zip(LOOPS[low], LOOPS[high], strict=True))
    return round(outer), round(inner)


def preset(method: str, name: str, dataset: str, ipc: int, network: str = "", space: str = "") -> Preset:
    """The preset `name` of a method in one cell.

    Args:
        method: a name of `METHODS`; a class of one's own has its defaults for a preset.
        name: `paper` or `quick`.
        dataset: canonical name of the data set; one that no paper used gets the nearest rule.
        ipc: images per class.
        network: spec of the matching network; empty for the one that the papers used on the data set.
        space: pixel space that was asked for; empty for the cell's own.

    Raises:
        UnknownNameError: there is no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    rule = _RULES.get(method)
    if rule is None:
        return Preset(name, {}, note="the defaults of the class")
    found = rule(dataset, max(1, ipc))  # no set has fewer, which is for others to say
    if space not in ("", found.space):
        found = _mtt_plain(dataset, max(1, ipc)) if method == "mtt" else found
        found = replace(found, space=space, origin="proposed", note=f"{found.note}, in another pixel space")
    options = {**found.options, **_for_network(method, network)}
    if name == "quick":
        cut = {key: value(found.options) if callable(value) else value for key, value in _QUICK.get(method, {}).items()}
        few = (20, 25) if method == "mtt" else (20, 30) if method == "esp" else found.experts
        note = "the steps are ours; else as the preset paper" if cut else found.note
        return Preset(name, {**options, **cut}, found.space, found.origin if not cut else "proposed", note, few)
    origin, note = found.origin, found.note
    if network not in ("", _network(dataset)):
        origin, note = "proposed", f"constants for {_network(dataset)}"
    return Preset(name, options, found.space, origin, note, found.experts)


def spaces(method: str) -> tuple[str, ...]:
    """Pixel spaces that the paper's presets of a method use, over the cells of the ESP paper's Table 1."""
    cells = [(dataset, ipc) for dataset, each in _ALL.items() for ipc in each]
    return tuple(sorted({preset(method, "paper", *cell).space for cell in cells}))


def describe(request: Mapping[str, Any]) -> str:
    """The changed options of a run as text, such as `beta=0 steps=500`; empty when there are none.

    Changes of another preset than `paper` begin with its name: `quick beta=0`. Requests of runs older than the presets
    name what differs from the method's defaults.
    """
    base = request.get("preset_base") if request.get("preset") == "custom" else None
    words = [] if base in (None, "paper") else [str(base)]
    words += [f"{key}={value}" for key, value in request.get("changed_options", {}).items()]
    if base and {"method", "dataset", "ipc"} <= request.keys():
        space = request.get("space", NORMALISED)
        if space != preset(request["method"], "paper", request["dataset"], request["ipc"]).space:
            words.append(f"space={space}")
    return " ".join(words)


def _network(dataset: str) -> str:
    """The ConvNet that the papers used: one block more for images of 64x64."""
    return "convnet4" if dataset == "tinyimagenet" else "convnet3"


def _for_network(method: str, network: str) -> Options:
    """What the released code of DC and DSA advises for a network without convolutions."""
    return {"lr_pixels": 0.01} if method in ("dc", "dsa") and network.partition(",")[0] == "mlp" else {}


_SMALL = {"svhn": (1, 10, 50), "cifar10": (1, 10, 50), "cifar100": (1, 10)}
_ALL = {**_SMALL, "tinyimagenet": (1, 10)}
Cells = Mapping[str, tuple[int, ...]]


def _stated(cells: Cells, dataset: str, ipc: int) -> dict[str, Any]:
    """Origin and note of constants that are one rule for all the cells that a paper reports."""
    if ipc in cells.get(dataset, ()):
        return {"origin": "published", "note": "the constants of the released code"}
    return {"origin": "proposed", "note": "the rule of " + ", ".join(cells)}


def _random(dataset: str, ipc: int) -> Preset:
    return Preset("paper", {}, **_stated(_ALL, dataset, ipc))


def _selection(dataset: str, ipc: int) -> Preset:
    return Preset("paper", {}, note="features of an expert of 50 epochs", experts=(1, 50))


def _matching(dataset: str, ipc: int) -> Preset:
    """DC and DSA: 1000 networks, with the loops of the number of images."""
    outer, inner = loops(ipc)
    return Preset("paper", {"steps": 1_000 * outer, "outer": outer, "inner": inner}, **_stated(_SMALL, dataset, ipc))


def _dm(dataset: str, ipc: int) -> Preset:
    many = ipc >= 100  # the released code's advice, given for CIFAR-10
    cells = {**_ALL, "cifar10": (*_ALL["cifar10"], *((ipc,) if many else ()))}
    return Preset("paper", {"lr_pixels": 10.0} if many else {}, **_stated(cells, dataset, ipc))


def _kip(dataset: str, ipc: int) -> Preset:
    note = "the released notebook; the published row is of convolutional kernels and a network of width 1024"
    return Preset("paper", {}, note=note)


def _cafe(dataset: str, ipc: int) -> Preset:
    """The caps on both loops are ours, for the released code has none."""
    outer, inner = loops(ipc)
    return Preset("paper", {"outer": 4 * outer, "inner": 4 * inner}, **_stated(_SMALL, dataset, ipc))


_MTT_FIELDS = ("student_steps", "segment", "start_max", "batch", "lr_pixels", "lr_rate", "rate")
_MTT: dict[tuple[str, int], tuple[str, tuple[float, ...]]] = {
    ("cifar10", 1): ("zca", (50, 2, 1, 0, 1e2, 1e-7, 1e-2)),
    ("cifar10", 10): ("zca", (30, 2, 19, 0, 1e2, 1e-5, 1e-3)),
    ("cifar10", 50): ("normalised", (30, 2, 39, 0, 1e3, 1e-5, 1e-3)),
    ("cifar100", 1): ("zca", (20, 3, 19, 0, 1e3, 1e-5, 1e-2)),
    ("cifar100", 10): ("normalised", (20, 2, 19, 0, 1e3, 1e-5, 1e-2)),
    ("cifar100", 50): ("zca", (80, 2, 39, 125, 1e3, 1e-5, 1e-2)),
    ("tinyimagenet", 1): ("normalised", (10, 2, 9, 0, 1e4, 1e-4, 1e-2)),
    ("tinyimagenet", 10): ("normalised", (20, 2, 39, 200, 1e4, 1e-4, 1e-2)),
    ("tinyimagenet", 50): ("normalised", (20, 2, 39, 300, 1e4, 1e-4, 1e-2)),
}
"""Pixel space, and `_MTT_FIELDS`, of the authors' list; its max_start_epoch is one more than `start_max`."""

_MTT_PLAIN: dict[int, tuple[float, ...]] = {
    1: (50, 2, 4, 0, 1e3, 1e-7, 1e-2),
    10: (30, 2, 14, 0, 1e3, 1e-5, 1e-3),
    50: (30, 2, 39, 0, 1e3, 1e-5, 1e-3),
}
"""The same for CIFAR-10 without whitening, as later work uses them; what any other data set gets."""


def _mtt(dataset: str, ipc: int) -> Preset:
    if (dataset, ipc) in _MTT:
        space, values = _MTT[dataset, ipc]
        options = _typed(values)
        return Preset("paper", options, space, "published", "the authors' list of hyper-parameters", (100, 50))
    known = sorted(each for name, each in _MTT if name == dataset)
    if not known:
        return _mtt_plain(dataset, ipc)
    near = _nearest(known, ipc)
    space, values = _MTT[dataset, near]
    return Preset("paper", _typed(values), space, "proposed", f"as {dataset} at {near} images per class", (100, 50))


def _mtt_plain(dataset: str, ipc: int) -> Preset:
    """Without whitening: a row of the data set's own that has none, else CIFAR-10's."""
    own = sorted(each for (name, each), (space, _) in _MTT.items() if name == dataset and space == "normalised")
    if own and dataset != "cifar10":
        near = _nearest(own, ipc)
        values, note = _MTT[dataset, near][1], f"as {dataset} at {near} images per class"
    else:
        near = _nearest(list(_MTT_PLAIN), ipc)
        values, note = _MTT_PLAIN[near], f"as cifar10 at {near} images per class without whitening"
    return Preset("paper", _typed(values), "normalised", "proposed", note, (100, 50))


def _typed(values: tuple[float, ...]) -> Options:
    whole = _MTT_FIELDS[:4]
    return {name: int(v) if name in whole else v for name, v in zip(_MTT_FIELDS, values, strict=True)}


def _nearest(known: list[int], ipc: int) -> int:
    """The entry whose ratio to `ipc` is nearest to one; of two the smaller."""
    return min(known, key=lambda each: (abs(math.log(each / ipc)), each))


def _idc(dataset: str, ipc: int) -> Preset:
    """The learning rate of pixels follows images per class and image size by itself."""
    options: Options = {"train_images": 500} if dataset == "svhn" else {}
    if dataset in ("mnist", "fashion_mnist"):
        options["distance"] = "l1"
    cells = {"svhn": (1, 10, 50), "cifar10": (1, 10, 50), "cifar100": (10,)}
    return Preset("paper", options, **_stated(cells, dataset, ipc))


def _kfs(dataset: str, ipc: int) -> Preset:
    options: Options = {"steps": 10_500} if dataset == "tinyimagenet" else {}
    if dataset in ("cifar100", "tinyimagenet"):
        options["real_classes"] = 20
    return Preset("paper", options, note="what the paper leaves open is ours; learning rates as ESP's")


def _esp(dataset: str, ipc: int) -> Preset:
    note = "beta, alpha and the learning rates are the paper's; steps, segment, restart and batch ours"
    return Preset("paper", {}, note=note, experts=(100, 50))


_RULES: dict[str, Callable[[str, int], Preset]] = {
    "cafe": _cafe,
    "dc": _matching,
    "dm": _dm,
    "dsa": _matching,
    "esp": _esp,
    "herding": _selection,
    "idc": _idc,
    "kcenter": _selection,
    "kfs": _kfs,
    "kip": _kip,
    "mtt": _mtt,
    "random": _random,
}

_QUICK: dict[str, dict[str, Any]] = {
    "cafe": {"steps": 200},
    "dc": {"steps": lambda paper: 200 * paper["outer"]},
    "dm": {"steps": 2_000},
    "dsa": {"steps": lambda paper: 200 * paper["outer"]},
    "esp": {"steps": 2_000},
    "idc": {"steps": 2_000},
    "kfs": {"steps": 2_500},
    "kip": {"steps": 300},
    "mtt": {"steps": 1_000, "start_max": lambda paper: min(paper["start_max"], 25 - paper["segment"])},
}
