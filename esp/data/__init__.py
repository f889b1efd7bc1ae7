"""Data sets by name, listable without importing torch.

A name is one of `DATASETS`, `folder:PATH` (a tree of images of one's own), `tensors:FILE` (arrays of one's own), or
`package.module:function` for a converter of one's own. `esp.data.store.load` turns a name into a `Dataset`.
"""

from __future__ import annotations

from esp.errors import InputError, UnknownNameError

DATASETS: dict[str, str] = {
    "cifar10": "esp.data.cifar:cifar10",
    "cifar100": "esp.data.cifar:cifar100",
    "digits": "esp.data.digits:convert",
    "fashion_mnist": "esp.data.mnist:fashion_mnist",
    "mnist": "esp.data.mnist:mnist",
    "svhn": "esp.data.svhn:convert",
    "tinyimagenet": "esp.data.tinyimagenet:convert",
}
"""Name -> `"module:converter"`, `converter(source: Path, download: bool) -> Raw`."""

PREFIXES: dict[str, str] = {"folder": "PATH", "tensors": "FILE"}
"""What may stand before a colon, and what follows it."""


def check_name(name: str) -> None:
    """Raise unless `name` has the form of a data set's name; looks at no file and imports nothing.

    Raises:
        UnknownNameError: `name` is not in the table and has no colon; the hint names the closest.
        InputError: nothing stands before or after the colon.
    """
    before, colon, after = name.partition(":")
    if colon and not (before and after):
        raise InputError(f"data set {name!r} is incomplete", "write folder:PATH or tensors:FILE")
    if not colon and name not in DATASETS:
        known = [*DATASETS, *(f"{prefix}:{rest}" for prefix, rest in PREFIXES.items())]
        raise UnknownNameError("data set", name, known)
    if colon and before not in PREFIXES and "." not in before:
        raise UnknownNameError("data set", name, [f"{prefix}:{rest}" for prefix, rest in PREFIXES.items()])
