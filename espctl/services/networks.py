"""What networks there are, and how large they are for the images of a data set."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from esp.data.store import load as load_data
from esp.errors import InputError
from esp.networks import NETWORKS
from esp.networks.flat import build, canonical_spec
from esp.registry import parse_spec, resolve
from espctl.services.project import Project

CIFAR10 = ((3, 32, 32), 10)
"""Image shape and classes where no data set is named."""


@dataclass(frozen=True)
class NetworkInfo:
    """A network for images of `shape`; what is not known is None where `problem` says why it does not take them.

    Attributes:
        spec: canonical spec.
        summary: what it is.
        options: those of its spec, and the defaults of the others.
        dataset: whose images they are, or None for the shape of CIFAR-10.
        shape, classes: of the images.
        parameters: numbers that are learned.
        statistics: running means and variances of batch normalisation beside them.
        features: length of a feature vector.
        flops: of a forward pass over one image; a multiply-add is two.
        levels: whether methods that match all levels (CAFE) can use it.
        problem: why it does not take these images, or empty.
    """

    spec: str
    summary: str
    options: dict[str, Any]
    dataset: str | None
    shape: tuple[int, int, int]
    classes: int
    parameters: int | None = None
    statistics: int | None = None
    features: int | None = None
    flops: int | None = None
    levels: bool | None = None
    problem: str = ""


def listing(project: Project, dataset: str | None) -> list[NetworkInfo]:
    """Every network of the table, for the images of a data set or of CIFAR-10's size.

    Raises:
        EspError: the data set cannot be loaded.
    """
    images = _images(project, dataset)
    return [_measure(name, *images) for name in sorted(NETWORKS)]


def describe(project: Project, spec: str, dataset: str | None) -> NetworkInfo:
    """One network with its options, `NAME[,option=value...]`; one's own is `package.module:factory`.

    Raises:
        EspError: the data set cannot be loaded, or there is no such network or option, or a value is out of range.
    """
    canonical_spec(spec)
    images = _images(project, dataset)
    found = _measure(spec, *images)
    if found.problem:
        build(spec, found.shape, found.classes)  # says it with a remedy
    return found


def _images(project: Project, dataset: str | None) -> tuple[str | None, tuple[int, int, int], int]:
    if dataset is None:
        return None, *CIFAR10
    data = load_data(dataset, project.paths.data, project.paths.raw)
    return data.name, data.shape, data.num_classes


def _measure(spec: str, dataset: str | None, shape: tuple[int, int, int], classes: int) -> NetworkInfo:
    given = ("shape", "classes")
    name, chosen = parse_spec(NETWORKS, "network", spec, given)
    factory = resolve(NETWORKS, "network", name)
    defaults = {key: p.default for key, p in inspect.signature(factory).parameters.items() if key not in given}
    summary = (factory.__doc__ or "").strip().partition("\n")[0]
    facts = (canonical_spec(spec), summary, {**defaults, **chosen}, dataset, shape, classes)
    try:
        network = build(spec, shape, classes)
    except InputError as error:
        return NetworkInfo(*facts, problem=error.message)
    sizes = (network.parameters, network.statistics, network.features, network.flops, network.has_levels)
    return NetworkInfo(*facts, *sizes)
