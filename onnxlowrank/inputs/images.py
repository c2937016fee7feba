"""Images as inputs: folders of image files, and packed arrays of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxlowrank.boundary import foreign, reason
from onnxlowrank.errors import DamagedInputsError, InputDataError, MissingInputsError, UnfitInputsError
from onnxlowrank.inputs.feeds import Inputs, label_rows
from onnxlowrank.inputs.npy import Header, in_memory, open_npz
from onnxlowrank.inputs.preprocess import Preprocess, apply, check_images_fit
from onnxlowrank.inputs.specs import Feeds, InputSpec, shape_text
from onnxlowrank.temporary import Scratch

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# Without this list Pillow would also try formats that start other programs, whatever the file's suffix says.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")


def folder_inputs(folder: Path, specs: Sequence[InputSpec], preprocess: Preprocess) -> Inputs:
    """Return the images in ``folder`` and below, sorted by path; hidden ones are left out, and what is no file.

    When every image lies in a direct subfolder, the position of that subfolder among its sorted siblings is the class
    index of its images; otherwise there are no labels.

    Raises:
        InputDataError: There is no image, or the model cannot take images.
        OptionError: The preprocessing contradicts the model.
    """
    spec = _image_spec(str(folder), specs, preprocess)
    paths = image_paths(folder)
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise MissingInputsError(f"the folder {folder} has no images: put files of the kinds {kinds} there.")
    labels = _class_labels(folder, paths)

    def sample(index: int) -> NDArray[Any]:
        return _open(folder / paths[index], preprocess, spec)

    return _image_inputs(sample, len(paths), spec, f"images in {folder}", labels)


def packed_inputs(path: Path, headers: dict[str, Header], specs: Sequence[InputSpec], preprocess: Preprocess) -> Inputs:
    """Return the images of a ``.npz`` file: uint8 ``images`` ``[N, H, W, C]`` and, if it has them, ``labels`` ``[N]``.

    Raises:
        InputDataError: The file cannot be read, or the model cannot take images.
        OptionError: The preprocessing contradicts the model.
    """
    spec = _image_spec(str(path), specs, preprocess)
    shape, dtype = headers["images"]
    if not dtype.hasobject and (dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4)):
        raise UnfitInputsError(
            f"the array 'images' of {path} is {dtype} {shape_text(shape)}: give uint8 [N, H, W, C], or name it "
            f"'{spec.name}' if it is ready to be fed."
        )
    scratch = Scratch()
    arrays = open_npz(path, [name for name in ("images", "labels") if name in headers], headers, scratch)
    images, labels = arrays["images"], in_memory(arrays["labels"]) if "labels" in arrays else None

    def sample(index: int) -> NDArray[Any]:
        return _named(f"{path}, image {index}", np.asarray(images[index]), preprocess, spec)

    return _image_inputs(sample, len(images), spec, f"images in {path}", labels, scratch)


def _image_spec(where: str, specs: Sequence[InputSpec], preprocess: Preprocess) -> InputSpec:
    if len(specs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise UnfitInputsError(
            f"{where} holds images, which serve models with one input, but this one has {names}: give ready feeds "
            "(.npz or an iterable) with these names."
        )
    check_images_fit(preprocess, specs[0])
    return specs[0]


def _image_inputs(
    sample: Callable[[int], NDArray[Any]],
    samples: int,
    spec: InputSpec,
    where: str,
    labels: NDArray[np.generic] | None,
    keep: Scratch | None = None,
) -> Inputs:
    """Return ``samples`` images stacked in batches, a short last one dropped."""
    batch = spec.batch
    count = samples // batch
    if not count:
        raise UnfitInputsError(f"there are only {samples} {where}, but the model takes batches of {batch}: add images.")
    rows = None if labels is None else label_rows(labels, samples, count, batch, where)

    def read(index: int) -> Feeds:
        stack = [sample(number) for number in range(index * batch, (index + 1) * batch)]
        if len({array.shape for array in stack}) > 1:
            raise UnfitInputsError(f"the {where} differ in size within batch {index}: give resize to make them equal.")
        return {spec.name: np.stack(stack)}

    return Inputs(read, count, batch, f"{count * batch} {where}", rows, keep)


def image_paths(folder: Path) -> list[Path]:
    """Return the images below ``folder``, relative to it and sorted, each linked folder entered once.

    Pipes and devices are none, whatever their names: reading them may never end.
    """
    found, seen = [], set()
    for here, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            inside = Path(here).relative_to(folder)
            found += [inside / name for name in files if _is_image(name) and os.path.isfile(os.path.join(here, name))]
        seen.add(real)
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _class_labels(folder: Path, paths: Sequence[Path]) -> NDArray[np.int64] | None:
    if any(len(path.parts) != 2 for path in paths):
        return None
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    index = {name: number for number, name in enumerate(names)}
    return np.array([index[path.parts[0]] for path in paths], dtype=np.int64)


def _open(path: Path, preprocess: Preprocess, spec: InputSpec) -> NDArray[Any]:
    with (
        foreign(
            lambda error: DamagedInputsError(f"the image {path} cannot be read ({reason(error)}): repair or remove it.")
        ),
        Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image,  # Pillow maps some files, we never do
    ):
        image.load()
        return _named(str(path), image, preprocess, spec)


def _named(name: str, image: Image.Image | NDArray[np.uint8], preprocess: Preprocess, spec: InputSpec) -> NDArray[Any]:
    try:
        return apply(image, preprocess, spec)
    except InputDataError as error:
        raise type(error)(f"{name}: {error}") from error
