"""Images flipped and shifted at random: what makes a few hundred of them many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.inputs.specs import Array, Feeds

FLIP, SHIFT = "flip", "shift"
KINDS = (FLIP, SHIFT)
_FARTHEST = 8
"""Of its side, the part that an image is shifted by at most."""


@dataclass(frozen=True)
class Augmentation:
    """How images are changed.

    Attributes:
        tensor: The input that holds them.
        rows: The axis of their rows; that of columns is the next.
        kinds: ``flip``: half of them from left to right; ``shift``: by up to an eighth of their side, the border
            reflected.
    """

    tensor: str
    rows: int
    kinds: frozenset[str]

    def apply(self, feeds: Feeds, rng: np.random.Generator) -> Feeds:
        """Return feeds with changed images."""
        images = feeds[self.tensor]
        changed = [self._one(image, rng) for image in images]
        return {**feeds, self.tensor: np.stack(changed)}

    def _one(self, image: Array, rng: np.random.Generator) -> Array:
        rows, columns = self.rows - 1, self.rows  # without the batch
        if FLIP in self.kinds and rng.random() < 0.5:
            image = np.flip(image, columns)
        if SHIFT in self.kinds:
            for axis in (rows, columns):
                most = image.shape[axis] // _FARTHEST
                image = np.take(image, _reflected(image.shape[axis], int(rng.integers(-most, most + 1))), axis)
        return image


def _reflected(size: int, shift: int) -> NDArray[np.intp]:
    """Return which pixel of a line every pixel of the shifted line is."""
    place = np.abs(np.arange(size) + shift)
    return np.where(place < size, place, 2 * (size - 1) - place)
