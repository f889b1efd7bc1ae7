"""Pixel spaces by name, and what each does to an image before a network sees it (methods.md 1.2). No torch in here."""

from __future__ import annotations

NORMALISED = "normalised"
"""The space of everything that does not say another."""

SPACES: dict[str, str] = {
    NORMALISED: "mean and deviation of each channel (DC, DSA, DM, CAFE, IDC, KFS, ESP)",
    "zca": "pixels of 0 to 1 whitened, eigenvalues + 0.1 (MTT where its table says so)",
    "kip": "normalised, each image to mean 0 and length 1, then whitened, + 0.1 trace / d (KIP)",
}
