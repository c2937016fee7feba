"""Noise that looks like photographs to a network, for models that come without calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxlowrank.errors import InputDataError, OptionError, UnfitInputsError
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import ImageGeometry, Preprocess, apply, image_geometry
from onnxlowrank.inputs.specs import Feeds, InputSpec

_DYNAMIC_SIZE = 224
# Mean colour of ImageNet, and the principal axes and variances of its pixels as fractions of 255 (the constants of
# Krizhevsky et al. 2012, section 4.1, as published with fb.resnet.torch). Column 0 is luminance.
_MEAN = np.array([0.485, 0.456, 0.406])
_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
# Share of that variance that lies between photographs rather than within one.
_BETWEEN = 0.25


def synthetic_inputs(specs: Sequence[InputSpec], preprocess: Preprocess, count: int, seed: int) -> Inputs:
    """Return ``count`` samples of noise for each input, made when they are read and the same for the same ``seed``.

    An input shaped like an image (four dimensions, 1 or 3 channels, floating-point or uint8) gets coloured noise with
    the 1/f spectrum and the colour statistics of photographs, preprocessed like one; a uint8 input gets its bytes.
    Other floating-point inputs get standard normal noise, integers and booleans ones. A dynamic batch is 1; other
    dynamic dimensions are 224 where there are at least three dimensions, 1 otherwise; those of one name have one size.

    Args:
        specs: The model's inputs.
        preprocess: As for images.
        count: Samples; rounded up to whole batches.
        seed: At least 0.

    Raises:
        InputDataError: The model has no inputs, or one that takes no numbers.
        OptionError: ``count`` or ``seed`` makes no sense, or the preprocessing contradicts the model.
    """
    if count < 1:
        raise OptionError(f"count must be at least 1, not {count}.")
    if seed < 0:
        raise OptionError(f"seed must be at least 0, not {seed}.")
    if not specs:
        raise UnfitInputsError("the model has no inputs, so there is nothing to feed: give a model with at least one.")
    for spec in specs:
        if spec.dtype.hasobject:
            raise UnfitInputsError(f"{spec} takes no numbers, so no noise can be made for it: give ready feeds.")
    specs = _with_equal_sizes(specs)
    geometries = [_image_geometry(preprocess, spec) for spec in specs]

    def read(index: int) -> Feeds:
        return {
            spec.name: _array(spec, geometry, preprocess, (seed, index, number))
            for number, (spec, geometry) in enumerate(zip(specs, geometries, strict=True))
        }

    batch = specs[0].batch
    feeds = -(-count // batch)
    kind = "images" if any(geometries) else "samples"
    return Inputs(read, feeds, batch, f"{feeds * batch} synthetic {kind} (seed {seed})")


def check_imaginable(specs: Sequence[InputSpec], preprocess: Preprocess) -> tuple[str, ...]:
    """Check that made up inputs can tell what a network computes; return what the user should know about them.

    Real numbers can be noise. Whole numbers are indices, say of words, and which ones make sense nobody can guess; but
    beside an image they may be a mask or a scalar.

    Raises:
        InputDataError: An input takes whole numbers, and there is no image beside it.
    """
    whole = [spec for spec in specs if not np.issubdtype(spec.dtype, np.floating) and not _is_image(preprocess, spec)]
    if whole and not any(_is_image(preprocess, spec) for spec in specs):
        raise UnfitInputsError(
            f"{whole[0]} takes whole numbers, which cannot be made up: give sample inputs with --calibration."
        )
    return tuple(f"no inputs were given: {spec} gets ones" for spec in whole)


def _is_image(preprocess: Preprocess, spec: InputSpec) -> bool:
    return _image_geometry(preprocess, spec) is not None


def _with_equal_sizes(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """Return the inputs with dynamic dimensions of the same name fixed to the size that one of them has.

    Sizes that are given count first; then the first input decides, except for its batch.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        for symbol, size in zip(spec.symbols, spec.shape, strict=False):
            if symbol is not None and size is not None:
                sizes.setdefault(symbol, size)
    for spec in specs:
        default = _DYNAMIC_SIZE if len(spec.shape) > 2 else 1
        for axis, (symbol, size) in enumerate(zip(spec.symbols, spec.shape, strict=False)):
            if symbol is not None and size is None:
                sizes.setdefault(symbol, default if axis else 1)
    return [replace(spec, shape=_sized(spec, sizes)) for spec in specs]


def _sized(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
    symbols = (*spec.symbols, *(None,) * (len(spec.shape) - len(spec.symbols)))
    shared = (sizes.get(symbol) if symbol else None for symbol in symbols)
    return tuple(size if size is not None else other for size, other in zip(spec.shape, shared, strict=True))


def _image_geometry(preprocess: Preprocess, spec: InputSpec) -> ImageGeometry | None:
    try:
        return image_geometry(preprocess, spec)
    except InputDataError:
        return None


def _array(
    spec: InputSpec, geometry: ImageGeometry | None, preprocess: Preprocess, key: tuple[int, int, int]
) -> NDArray[Any]:
    rng = np.random.default_rng(key)
    if geometry is not None:
        if spec.dtype == np.uint8:
            preprocess = replace(preprocess, mean=(0.0,), std=(1.0,), scale=1.0)
        size = (
            preprocess.resize or preprocess.crop or (geometry.height or _DYNAMIC_SIZE, geometry.width or _DYNAMIC_SIZE)
        )
        return np.stack([apply(photograph(rng, *size), preprocess, spec) for _ in range(spec.batch)])
    default = _DYNAMIC_SIZE if len(spec.shape) > 2 else 1
    shape = tuple(spec.batch if axis == 0 else size or default for axis, size in enumerate(spec.shape))
    if np.issubdtype(spec.dtype, np.floating):
        return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
    return np.ones(shape, spec.dtype)


def photograph(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Return noise ``[height, width, 3]`` (RGB) with the spectrum, brightness, contrast and colours of photographs."""
    fields = np.stack([_pink(rng, height, width) for _ in _VARIANCES], axis=-1)
    contrast = rng.uniform(0.5, 1.4)
    scores = contrast * np.sqrt(1 - _BETWEEN) * fields + np.sqrt(_BETWEEN) * rng.standard_normal(len(_VARIANCES))
    pixels = 255 * (_MEAN + (scores * np.sqrt(_VARIANCES)) @ _AXES.T)
    return np.asarray(np.rint(pixels).clip(0, 255), dtype=np.uint8)


def _pink(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Return a random field ``[height, width]`` of mean 0 and variance 1 whose amplitude spectrum falls as 1/f."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, s=(height, width))
    deviation = field.std()
    return np.asarray(field / deviation if deviation else field)
