"""The subspace that a segment of an expert's trajectory spans (ESP eq. 2, 3 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esp.errors import InputError
from esp.parts import is_part

DEPENDENT = 1e-7
"""A direction whose part outside the earlier ones is shorter than this fraction of it adds nothing to the span."""


@dataclass(frozen=True)
class Subspace:
    """Orthonormal columns E [p, k] of a linear subspace of weight space."""

    basis: Tensor

    @is_part("projection")
    def coordinates(self, vector: Tensor) -> Tensor:
        """E'v [k] for v [p]."""
        return self.basis.T @ vector

    @is_part("projection")
    def point(self, coordinates: Tensor) -> Tensor:
        """E c [p] for coordinates c [k]."""
        return self.basis @ coordinates

    @is_part("projection")
    def split(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates c [k] of the projection of G [p], and the residual r = G - E c [p] (eq. 5 and 7).

        A second pass removes what rounding leaves of r inside the subspace.
        """
        first = self.coordinates(gradient)
        residual = gradient - self.point(first)
        second = self.coordinates(residual)
        return first + second, residual - self.point(second)

    def outside(self, vector: Tensor) -> Tensor:
        """(I - EE') v [p]."""
        return self.split(vector)[1]


def span(snapshots: Tensor) -> Subspace:
    """The linear span of snapshots [T+1, p], by Gram-Schmidt carried out twice in float64.

    Snapshots of one trajectory are nearly parallel, so the basis is made from the first one and the successive
    differences: the same span, far better conditioned. Dependent directions are dropped.

    Raises:
        InputError: no direction is left (all weights are zero or not finite).
    """
    wide = snapshots.to(torch.float64)
    directions = torch.cat([wide[:1], wide[1:] - wide[:-1]])
    columns = wide.new_empty(wide.shape[1], 0)
    for direction in directions:
        length = direction.norm()
        rest = direction - columns @ (columns.T @ direction)
        rest = rest - columns @ (columns.T @ rest)
        if rest.norm() > DEPENDENT * length:
            columns = torch.cat([columns, (rest / rest.norm())[:, None]], dim=1)
    if not columns.shape[1]:
        raise InputError("the segment spans nothing: its weights are zero or not finite", "build the expert again")
    return Subspace(columns.to(snapshots.dtype))
