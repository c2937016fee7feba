"""``psnr``: peak signal-to-noise ratio of images to those of the original network, in dB.

The peak is the range of the original's values over all inputs. The rounding of an image to 8 bits counts as noise as
well: its variance is a twelfth of a grey level's square. So equal images have 58.9 dB, a drop is a finite number, and a
drop of 3 dB says that the error is as large as that of rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import OptionError
from onnxlowrank.evaluate.task_metrics.base import Given, Outputs, Score, is_float, same_shape

_ROUNDING = 1 / (12 * 255**2)
"""Variance of the rounding to 8 bits, for a peak of 1."""


def psnr(given: Given) -> Callable[[Outputs], Score]:
    """Judge images or maps of three axes or more by their squared distance to the original's."""
    name = given.only(
        "psnr", "images [N, C, H, W], [N, H, W, C] or [N, H, W]", lambda array: is_float(array) and array.ndim > 2
    )
    images = [np.asarray(one[name], np.float64) for one in given.original]
    finite = np.concatenate([image[np.isfinite(image)] for image in images])
    peak = float(np.ptp(finite)) if finite.size else 0.0
    if not peak > 0:
        raise OptionError(f"--metric psnr: all values of the output {name} are the same; give other inputs")

    def score(outputs: Outputs) -> Score:
        sums = []
        for image, one in zip(images, outputs, strict=True):
            known = np.isfinite(image)
            error = (same_shape(image, one[name], name)[known] - image[known]) / peak
            sums.append((float(error @ error), error.size))
        errors, counts = np.array(sums).T

        def of(chosen: NDArray[np.intp]) -> float:
            mean = errors[chosen].sum() / max(counts[chosen].sum(), 1)
            return float(-10 * np.log10(mean + _ROUNDING))

        return Score(of)

    return score
