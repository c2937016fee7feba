"""From pixels to the model's input: resize, crop, channel order, scaling, layout."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxlowrank.errors import OptionError, UnfitInputsError
from onnxlowrank.inputs.specs import InputSpec, shape_text

Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr"]
Size = tuple[int, int]

_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an input: ``x = (pixel * scale - mean) / std``, pixels 0..255.

    Without ``resize`` and ``crop`` the image is resized straight to the model's height and width, and keeps its own
    along an axis the model leaves dynamic. Otherwise it is resized to ``resize`` (if given) and then its centre of the
    size ``crop`` (if given) is cut out, the odd pixel left at the bottom and right. Resizing is PIL's bilinear filter
    and does not preserve the aspect ratio. Greyscale images feed colour models as three equal channels.

    Attributes:
        mean: Subtracted; one value, or one a channel in the order of the channels as fed. A model with one channel,
            fed the luminance, takes the average of the values.
        std: Divided by; likewise.
        scale: Factor applied to the pixels before that.
        resize: ``(height, width)`` in pixels, or None.
        crop: ``(height, width)`` in pixels, or None.
        layout: ``nchw`` or ``nhwc``; None to take it from the model, where axis 1 or the last axis has 1 or 3 channels.
        channels: Order in which a colour model is fed the channels.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    resize: Size | None = None
    crop: Size | None = None
    layout: Layout | None = None
    channels: Channels = "rgb"

    @property
    def keeps_pixels(self) -> bool:
        """Whether the values fed are the pixels 0..255 themselves."""
        return self.scale == 1 and not any(self.mean) and all(value == 1 for value in self.std)


def _preset(name: str) -> Preprocess:
    match name:
        case "unit":
            return Preprocess(scale=1 / 255)
        case "imagenet":
            return Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255)
        case "caffe":
            return Preprocess(mean=(103.939, 116.779, 123.68), channels="bgr")
        case "raw":
            return Preprocess()
        case _:
            raise OptionError(f"preprocess preset '{name}' is unknown: choose unit, imagenet, caffe or raw.")


def preprocess_from_options(
    preset: str = "imagenet",
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    resize: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    layout: str | None = None,
    channels: str | None = None,
) -> Preprocess:
    """Return the preprocessing of ``preset``, with the options given put in place of its own.

    When ``channels`` turns the order of a preset around, the preset's own mean and std are turned with it, so that
    each colour keeps its values; a mean or std given here is taken in the order of the channels as fed.

    Args:
        preset: ``unit`` (RGB / 255), ``imagenet`` (RGB / 255, then ImageNet's mean and std), ``caffe`` (BGR 0..255
            minus ImageNet's mean) or ``raw`` (RGB 0..255 as they are).
        mean: One value, or one a channel.
        std: One value, or one a channel.
        scale: Factor on the pixels.
        resize: Side of a square, or ``(height, width)``, in pixels.
        crop: Likewise.
        layout: ``nchw`` or ``nhwc``.
        channels: ``rgb`` or ``bgr``.

    Raises:
        OptionError: The preset is unknown, or an option's value makes no sense.
    """
    chosen = _preset(preset)
    if channels is not None:
        if channels not in ("rgb", "bgr"):
            raise OptionError(f"channels must be rgb or bgr, not {channels!r}.")
        if channels != chosen.channels:
            chosen = replace(chosen, channels=cast(Channels, channels), mean=chosen.mean[::-1], std=chosen.std[::-1])
    if layout is not None:
        if layout not in ("nchw", "nhwc"):
            raise OptionError(f"layout must be nchw or nhwc, not {layout!r}.")
        chosen = replace(chosen, layout=cast(Layout, layout))
    if mean is not None:
        chosen = replace(chosen, mean=_channel_values("mean", mean))
    if std is not None:
        chosen = replace(chosen, std=_channel_values("std", std))
    if scale is not None:
        chosen = replace(chosen, scale=_numbers("scale", [scale])[0])
    if min(chosen.std) <= 0:
        raise OptionError(f"std must be above 0, not {min(chosen.std):g}.")
    if chosen.scale == 0:
        raise OptionError("scale must not be 0, which would turn every image into a constant.")
    chosen = replace(chosen, resize=_size("resize", resize), crop=_size("crop", crop))
    if chosen.resize and chosen.crop and any(c > r for c, r in zip(chosen.crop, chosen.resize, strict=True)):
        raise OptionError(f"crop {_by(chosen.crop)} is larger than resize {_by(chosen.resize)}: make it smaller.")
    return chosen


def _numbers(option: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise OptionError(f"{option} must be a number or a list of numbers, not {values!r}.") from None
    if not all(math.isfinite(number) for number in numbers):
        raise OptionError(f"{option} must be finite, not {values!r}.")
    return numbers


def _channel_values(option: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = _numbers(option, [value] if isinstance(value, str) or not isinstance(value, Sequence) else value)
    if len(values) not in (1, 3):
        raise OptionError(f"{option} has {len(values)} values: give one, or one for each of the 3 channels.")
    return values


def _size(option: str, value: int | Sequence[int] | None) -> Size | None:
    if value is None:
        return None
    try:
        sizes = [operator.index(size) for size in (value if isinstance(value, Sequence) else [value])]
    except TypeError:
        sizes = []
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise OptionError(f"{option} must be a size in whole pixels or a pair (height, width), not {value!r}.")
    return sizes[0], sizes[-1]


@dataclass(frozen=True)
class ImageGeometry:
    """Where an image-shaped input keeps its channels, and its size; None for a dynamic height or width."""

    layout: Layout
    channels: int
    height: int | None
    width: int | None


def image_geometry(preprocess: Preprocess, spec: InputSpec) -> ImageGeometry:
    """Return how images fit the input ``spec`` under ``preprocess``.

    Raises:
        InputDataError: The input does not have the shape or the type of an image.
        OptionError: ``resize`` or ``crop`` contradicts the model's height and width.
    """
    ready = "give ready feeds (.npy, .npz or an iterable) instead"
    if not np.issubdtype(spec.dtype, np.floating) and spec.dtype != np.uint8:
        raise UnfitInputsError(f"{spec} cannot take images, which need a floating-point or uint8 input: {ready}.")
    if len(spec.shape) != 4:
        raise UnfitInputsError(f"{spec} cannot take images, which need 4 dimensions: {ready}.")
    layout = preprocess.layout or _layout_of(spec.shape)
    if layout is None:
        raise UnfitInputsError(f"{spec} does not tell which axis holds the channels: give the layout, nchw or nhwc.")
    _, first, middle, last = spec.shape
    channels, height, width = (first, middle, last) if layout == "nchw" else (last, first, middle)
    if channels not in (1, 3, None):
        raise UnfitInputsError(f"{spec} has {channels} channels ({layout}), but images have 1 or 3: {ready}.")
    option, size = ("crop", preprocess.crop) if preprocess.crop else ("resize", preprocess.resize)
    if size and any(want not in (None, have) for have, want in zip(size, (height, width), strict=True)):
        raise OptionError(
            f"{option} gives images of {_by(size)}, but the model's input '{spec.name}' has shape "
            f"{shape_text(spec.shape)}: set {'it' if preprocess.crop else 'resize or crop'} to that height and width."
        )
    return ImageGeometry(layout, channels or 3, height, width)


def _layout_of(shape: tuple[int | None, ...]) -> Layout | None:
    if shape[1] in (1, 3):
        return "nchw"
    if shape[3] in (1, 3):
        return "nhwc"
    return None if None in (shape[1], shape[3]) else "nchw"


def check_images_fit(preprocess: Preprocess, spec: InputSpec) -> ImageGeometry:
    """Return the geometry, or raise what :func:`apply` would raise for every image: InputDataError or OptionError."""
    geometry = image_geometry(preprocess, spec)
    if spec.dtype == np.uint8 and not preprocess.keeps_pixels:
        raise OptionError(f"{spec} takes the bytes of the image as they are: choose the preset raw.")
    return geometry


def apply(image: Image.Image | NDArray[np.uint8], preprocess: Preprocess, spec: InputSpec) -> NDArray[Any]:
    """Return ``image`` as one sample of the model's input ``spec``, without the batch axis.

    Args:
        image: A PIL image of 8 bits a channel, or an array ``[H, W, C]`` with 1, 3 or 4 channels (alpha is ignored).
        preprocess: What to do with it.
        spec: The input, ``[N, C, H, W]`` or ``[N, H, W, C]``.

    Returns:
        ``[C, H, W]`` or ``[H, W, C]`` of the input's type, computed in float32; for a uint8 input the bytes themselves.

    Raises:
        InputDataError: The image cannot be used, or the input cannot take images.
        OptionError: The options contradict the model.
    """
    geometry = check_images_fit(preprocess, spec)
    picture = _cut(_convert(image, geometry.channels), preprocess, geometry)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, geometry.channels)
    if geometry.channels == 3 and preprocess.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    if spec.dtype != np.uint8:
        mean = _per_channel(preprocess.mean, geometry.channels)
        std = _per_channel(preprocess.std, geometry.channels)
        pixels = (pixels.astype(np.float32) * np.float32(preprocess.scale) - mean) / std
    sample = pixels.transpose(2, 0, 1) if geometry.layout == "nchw" else pixels
    return np.ascontiguousarray(sample, dtype=spec.dtype)


def _convert(image: Image.Image | NDArray[np.uint8], channels: int) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
            raise UnfitInputsError(
                f"the image is {image.dtype} {list(image.shape)}: give uint8 [H, W, C] with 1, 3 or 4 channels."
            )
        image = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if image.mode.startswith(_DEEP_MODES):
        raise UnfitInputsError(f"the image has pixels of mode {image.mode}: save it with 8 bits a channel.")
    return image.convert("L" if channels == 1 else "RGB")


def _cut(image: Image.Image, preprocess: Preprocess, geometry: ImageGeometry) -> Image.Image:
    size = preprocess.resize
    if size is None and preprocess.crop is None:
        size = (geometry.height or image.height, geometry.width or image.width)
    if size and size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if preprocess.crop is None:
        return image
    height, width = preprocess.crop
    if height > image.height or width > image.width:
        raise UnfitInputsError(
            f"the image is {_by((image.height, image.width))}, smaller than crop {_by(preprocess.crop)}: "
            "make crop smaller or give resize as well."
        )
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def _per_channel(values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    return np.asarray([sum(values) / len(values)] if channels == 1 else values, dtype=np.float32)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]} (height x width)"
