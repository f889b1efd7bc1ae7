"""The one place that imports torchvision, so that its one trap is dealt with once.

The Linux wheels of torchvision carry compiled operators for CUDA builds. Beside a torch built for the CPU alone they do
not load, and the import itself then fails with "operator torchvision::nms does not exist", although data sets, models
and transforms need none of them. Giving these operators a schema is enough to import everything else.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from esp.errors import DataError

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def torchvision() -> ModuleType:
    """The module `torchvision`, with its `datasets`, `models` and `transforms`.

    Raises:
        DataError: torchvision is not installed, or does not fit the installed torch.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        # Only now, because working operators refuse to be defined a second time.
        if "torchvision::" not in str(error):
            raise _unusable(error) from error
        _define_missing()
    except ImportError as error:
        raise _unusable(error) from error
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise _unusable(error) from error


def _define_missing() -> None:
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)


def _unusable(error: Exception) -> DataError:
    return DataError(
        f"torchvision cannot be imported ({error})", "install the torchvision release that belongs to this torch"
    )
