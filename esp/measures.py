"""Measures of a synthetic set beside its accuracy, after DD-Ranking (Li et al., arXiv 2505.13300).

All arguments are test accuracies as fractions, means over networks. "Random" is a random selection of real images of
the same size, trained by the same recipe as the synthetic set.
"""

from __future__ import annotations

import math

from esp.errors import InputError


def hard_label_recovery(real: float, synthetic: float) -> float:
    """HLR = acc(real, hard labels) - acc(synthetic, hard labels): what condensing lost; smaller is better.

    Args:
        real: of networks trained on all real images with their labels.
        synthetic: of networks of the same architecture trained on the synthetic set with one class per image.
    """
    return _fraction(real) - _fraction(synthetic)


def improvement_over_random(synthetic: float, random: float) -> float:
    """IOR = acc(synthetic, its own recipe) - acc(random selection of equal size, the same recipe); larger is better."""
    return _fraction(synthetic) - _fraction(random)


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """LRS = (e^a - e^-1) / (e - e^-1) with a = w IOR - (1 - w) HLR: 0 at the worst, 1 at the best.

    Args:
        ior: improvement over random, in [-1, 1].
        hlr: hard label recovery, in [-1, 1].
        weight: w, in [0, 1].
    """
    return _squashed(weight * ior, (1 - weight) * -hlr, weight)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS = (e^b - e^-1) / (e - e^-1) with b = w (gain with augmentation) + (1 - w) (gain without).

    Args:
        augmented: improvement over random where networks are trained with augmentation, in [-1, 1].
        plain: the same where they are trained without.
        weight: w, in [0, 1].
    """
    return _squashed(weight * augmented, (1 - weight) * plain, weight)


def _squashed(first: float, second: float, weight: float) -> float:
    if not 0 <= weight <= 1:
        raise InputError(f"a weight of {weight} cannot be used", "give a number from 0 to 1")
    low = math.exp(-1)
    return (math.exp(first + second) - low) / (math.e - low)


def _fraction(accuracy: float) -> float:
    if not 0 <= accuracy <= 1:
        raise InputError(f"an accuracy of {accuracy} is no fraction", "give accuracies from 0 to 1, not in percent")
    return accuracy
