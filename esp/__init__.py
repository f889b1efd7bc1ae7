"""Dataset condensation by Expert Subspace Projection and the methods that it is compared with.

The names below are resolved when they are first used: `import esp` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Condensed": "esp.condensed",
    "Dataset": "esp.data.dataset",
    "EspError": "esp.errors",
    "Evaluator": "esp.evaluation",
    "Experts": "esp.trajectory",
    "Frame": "esp.parametrisation",
    "Key": "esp.rng",
    "Method": "esp.core",
    "Network": "esp.networks.flat",
    "Protocol": "esp.evaluation",
    "Recipe": "esp.training",
    "SyntheticDataset": "esp.synthetic",
    "Task": "esp.core",
    "TrainedNetwork": "esp.synthetic",
    "Trainer": "esp.training",
    "condense": "esp.core",
    "train_network": "esp.synthetic",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 (names of a table)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'esp' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
