"""A whitening: two linear maps between pixels and a space in which their covariance is nearly the identity."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_TINY = 1e-12  # length of an image of one colour, which has no direction


@dataclass(frozen=True, eq=False)
class Whitening:
    """The maps to and from a whitened space, with what comes before them; `esp.data.zca` fits and keeps them.

    Attributes:
        space: `zca` or `kip`.
        mean: [d], subtracted first; zeros for `kip`, whose images have mean 0 each.
        matrix: [d, d], symmetric: centred rows times this are white.
        inverse: [d, d], of `matrix`.
        length: mean length of the centred images of `kip`, which its space forgets; 1 for `zca`.
    """

    space: str
    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    length: float
    _copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def apply(self, rows: Tensor) -> Tensor:
        """Rows [n, d] to the space: of pixels in 0 to 1 for `zca`, of normalised ones for `kip`. Differentiable."""
        rows = unit_rows(rows) if self.space == "kip" else rows - self._like("mean", rows)
        return rows @ self._like("matrix", rows)

    def undo(self, rows: Tensor) -> Tensor:
        """The inverse of `apply`; images of `kip` come back with a mean of 0 and the length of an average image."""
        return rows @ self._like("inverse", rows) * self.length + self._like("mean", rows)

    def _like(self, name: str, rows: Tensor) -> Tensor:
        key = name, rows.device, rows.dtype
        if key not in self._copies:
            self._copies[key] = getattr(self, name).to(rows)
        return self._copies[key]


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [n, d] of mean 0 and length 1 each; a row of one value becomes zeros."""
    centred = rows - rows.mean(1, keepdim=True)
    lengths: Tensor = centred.norm(dim=1, keepdim=True)
    return centred / lengths.clamp(min=_TINY)
