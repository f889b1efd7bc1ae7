"""Learning rates that no recipe names: the one that was learned with a set, and the largest stable one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import jvp, vjp

from esp.errors import InputError, MismatchError
from esp.networks.flat import Network
from esp.recipes import Protocol

STABLE_IMAGES = 50
"""Real images from whose tangent kernel the largest stable learning rate is read."""


def require_rate(protocol: Protocol, rate: float | None) -> float:
    """The learning rate of a set for a protocol that takes the learned one: the set's, or else the protocol's fallback.

    Raises:
        MismatchError: the set came without one, and the protocol has no fallback.
        InputError: the learned rate is not above zero: training with it would climb.
    """
    if rate is None and not protocol.fallback_lr:
        raise MismatchError(
            f"the protocol {protocol.name} trains with the learning rate that was learned with a set, "
            "and this set came without one",
            f'score it by --protocol dsa, or by a protocol of your own: base = "{protocol.name}", fallback_lr = 0.01',
        )
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(
            f"the learning rate that was learned with this set is {rate:.3g}, nothing can be trained with it",
            "score it by --protocol dsa, or condense again with a lower lr_rate",
        )
    return protocol.fallback_lr if rate is None else rate


def stable_rate(network: Network, theta: Tensor, images: Tensor, most: int = 200) -> float:
    """The largest learning rate at which gradient descent on half the mean square error contracts at theta [p].

    2 n k / lambda, where lambda is the largest eigenvalue of the empirical tangent kernel [n, n] of the sum of the k
    logits over sqrt(k), on images [n, c, h, w]; by power iteration, which holds a few vectors [p] and no Jacobian.
    """
    classes = network.classes

    def outputs(weights: Tensor) -> Tensor:
        return network(weights, images)[1].sum(1) / math.sqrt(classes)

    vector = torch.full((len(images),), 1 / math.sqrt(len(images))).to(theta)
    value, before = 0.0, -1.0
    pull = vjp(outputs, theta)[1]
    for _ in range(most):
        product = jvp(outputs, (theta,), (pull(vector)[0],))[1]
        value = float(product.norm())
        if not value or abs(value - before) <= 1e-6 * value:
            break
        before, vector = value, product / value
    if not value:
        raise InputError("the network's output depends on none of its weights", "give another network")
    return 2 * len(images) * classes / value
