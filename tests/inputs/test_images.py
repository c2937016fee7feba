import gc
import tempfile

import numpy as np
import onnx
import pytest
from helpers.inputs import RAW, same, says, spec
from onnx import TensorProto, helper
from PIL import Image

from onnxlowrank.errors import InputDataError, ModelError, OptionError
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.inputs.preprocess import apply, preprocess_from_options
from onnxlowrank.inputs.sources import open_inputs
from onnxlowrank.inputs.specs import input_specs

DATA = (spec(None, 3, 8, 6),)


def pixels(seed, height=8, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path, seed, height=8, width=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)


def test_input_specs_leave_initializers_out():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [],
        "g",
        [
            value("x", TensorProto.FLOAT16, ["N", 3, -1, 8]),
            value("w", TensorProto.FLOAT, [2]),
            value("s", TensorProto.INT64, []),
        ],
        [],
        [onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w")],
    )
    assert input_specs(helper.make_model(graph)) == (
        spec(None, 3, None, 8, name="x", dtype="float16"),
        spec(name="s", dtype="int64"),
    )


def test_inputs_without_shape_or_that_are_no_tensors_are_refused():
    for value in (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1]),
    ):
        with pytest.raises(ModelError, match="'x'"):
            input_specs(helper.make_model(helper.make_graph([], "g", [value], [])))


def test_class_folders_give_sorted_images_and_labels(tmp_path):
    put(tmp_path / "b" / "2.png", 2)
    put(tmp_path / "b" / "1.PNG", 1)
    put(tmp_path / "c" / ".hidden.png", 9)
    put(tmp_path / "d" / "0.bmp", 3)
    put(tmp_path / "a" / "z.png", 0)
    (tmp_path / "notes.txt").write_text("not an image")
    inputs = open_inputs(tmp_path, DATA, RAW)
    assert inputs.description == f"4 images in {tmp_path}"
    assert inputs.batch == 1
    assert inputs.labels.dtype == np.int64
    np.testing.assert_array_equal(inputs.labels, [[0], [1], [1], [3]])
    for index, feeds in enumerate(inputs):
        np.testing.assert_array_equal(feeds["data"], pixels(index).transpose(2, 0, 1)[None])
    same(inputs, list(inputs))


def test_images_elsewhere_have_no_labels(tmp_path):
    put(tmp_path / "a" / "1.png", 1)
    put(tmp_path / "0.png", 0)
    assert open_inputs(str(tmp_path), DATA, RAW).labels is None
    put(tmp_path / "deep" / "a" / "b" / "1.png", 1)
    assert open_inputs(tmp_path / "deep", DATA, RAW).labels is None


def test_linked_folders_are_entered_once(tmp_path):
    put(tmp_path / "store" / "1.png", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "data")
    assert len(open_inputs(tmp_path / "data", DATA, RAW)) == 1


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "tif"])
def test_every_kind_of_image(tmp_path, suffix):
    put(tmp_path / f"0.{suffix}", 0, 16, 16)
    with Image.open(tmp_path / f"0.{suffix}") as image:
        want = apply(image, RAW, DATA[0])
    np.testing.assert_array_equal(open_inputs(tmp_path, DATA, RAW)[0]["data"][0], want)


def test_fixed_batch_stacks_images_and_drops_the_rest(tmp_path):
    for index in range(5):
        put(tmp_path / ("a" if index < 3 else "b") / f"{index}.png", index)
    inputs = open_inputs(tmp_path, (spec(2, 8, 6, 3),), RAW)
    assert (len(inputs), inputs.batch) == (2, 2)
    assert inputs.description.startswith("4 images")
    np.testing.assert_array_equal(inputs.labels, [[0, 0], [0, 1]])
    np.testing.assert_array_equal(inputs[1]["data"], np.stack([pixels(2), pixels(3)]))
    says(tmp_path, (spec(6, 8, 6, 3),), "only 5 images", tmp_path, "batches of 6")


def test_images_of_different_size_do_not_stack(tmp_path):
    put(tmp_path / "0.png", 0)
    put(tmp_path / "1.png", 1, 9, 6)
    says(tmp_path, (spec(2, 3, None, None),), tmp_path, "differ in size", "resize", read=True)
    shapes = [feeds["data"].shape for feeds in open_inputs(tmp_path, (spec(None, 3, None, None),), RAW)]
    assert shapes == [(1, 3, 8, 6), (1, 3, 9, 6)]


def test_damaged_images_are_named_when_they_are_read(tmp_path):
    put(tmp_path / "0.png", 0)
    (tmp_path / "1.jpg").write_bytes(b"no image at all")
    whole = tmp_path / "2.png"
    put(whole, 2, 64, 64)
    whole.write_bytes(whole.read_bytes()[:3000])
    Image.fromarray(np.zeros((8, 6), np.uint16)).save(tmp_path / "3.png")
    inputs = open_inputs(tmp_path, DATA, RAW)
    inputs[0]
    for index, name in enumerate(("1.jpg", "2.png", "3.png"), 1):
        with pytest.raises(InputDataError, match=rf"{name}.*\.$"):
            inputs[index]


def test_image_smaller_than_the_crop_is_named(tmp_path):
    put(tmp_path / "small.png", 0)
    says(tmp_path, (spec(1, 3, 9, 9),), "small.png", "crop", preprocess=preprocess_from_options(crop=9), read=True)


def test_folders_that_cannot_serve(tmp_path):
    says(tmp_path / "gone", DATA, tmp_path / "gone", "does not exist")
    says(tmp_path, DATA, tmp_path, "no images", "png")
    put(tmp_path / "0.png", 0)
    says(tmp_path, (spec(1, 5, 8, 6),), "'data'", "5 channels", "ready feeds")
    says(tmp_path, (spec(1, 10),), "'data'", "4 dimensions", "ready feeds")
    says(tmp_path, (*DATA, spec(1, name="scale")), tmp_path, "one input", "'scale'")
    says(tmp_path / "0.png", DATA, "0.png", "folder of images")
    says(tmp_path, (), "no inputs")
    with pytest.raises(OptionError, match="crop"):
        open_inputs(tmp_path, DATA, preprocess_from_options(crop=4))


def test_packed_images(tmp_path):
    images = np.stack([pixels(index) for index in range(5)])
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.arange(5, dtype=np.uint8))
    inputs = open_inputs(tmp_path / "x.npz", (spec(2, 3, 8, 6),), RAW)
    assert inputs.description == f"4 images in {tmp_path / 'x.npz'}"
    np.testing.assert_array_equal(inputs.labels, [[0, 1], [2, 3]])
    assert inputs.labels.dtype == np.int64
    np.testing.assert_array_equal(inputs[1]["data"], images[2:4].transpose(0, 3, 1, 2))
    np.savez(tmp_path / "y.npz", images=images)
    assert open_inputs(tmp_path / "y.npz", DATA, RAW).labels is None


def test_packed_images_that_cannot_serve(tmp_path):
    images = np.stack([pixels(index) for index in range(5)])
    path = tmp_path / "x.npz"
    np.savez(path, images=images, labels=np.arange(4))
    says(path, DATA, path, "'labels'", "5 samples")
    np.savez(path, images=images, labels=np.arange(5.0))
    says(path, DATA, path, "'labels'", "integer")
    np.savez(path, images=images.transpose(0, 3, 1, 2))
    says(path, DATA, path, "[5, 3, 8, 6]", "[N, H, W, C]")
    np.savez(path, images=images.astype(np.float32))
    says(path, DATA, path, "float32", "uint8")
    np.savez(path, images=images)
    says(path, (*DATA, spec(1, name="scale")), path, "one input", "'scale'")
    np.savez(path, images=np.array([images], dtype=object))
    says(path, DATA, path, "'images'", "allow_pickle=False")


def test_an_input_called_images_takes_either_kind(tmp_path):
    images = np.stack([pixels(index) for index in range(2)])
    named = (spec(None, 3, 8, 6, name="images"),)
    np.savez(tmp_path / "bytes.npz", images=images)
    ready = images.transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(tmp_path / "ready.npz", images=ready)
    unit = preprocess_from_options("unit")
    np.testing.assert_allclose(
        open_inputs(tmp_path / "bytes.npz", named, unit)[1]["images"], ready[1:] / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(open_inputs(tmp_path / "ready.npz", named, unit)[1]["images"], ready[1:])


def test_sequence_protocol_and_subset(tmp_path):
    images = np.stack([pixels(index) for index in range(5)])
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(5))
    inputs = open_inputs(tmp_path / "x.npz", DATA, RAW)
    assert open_inputs(inputs, DATA, RAW) is inputs
    some = inputs.subset([4, 0, -2])
    assert isinstance(some, Inputs)
    np.testing.assert_array_equal(some.labels, [[4], [0], [3]])
    same(some, [inputs[4], inputs[0], inputs[3]])
    same(inputs[1:3], [inputs[1], inputs[2]])
    assert some.description == f"3 of {inputs.description}"
    for index in (5, -6):
        with pytest.raises(IndexError):
            inputs[index]
        with pytest.raises(IndexError):
            inputs.subset([index])


def test_unpacked_copies_go_with_the_last_user(tmp_path, monkeypatch):
    spooled = tmp_path / "spool"
    spooled.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spooled))
    np.savez(tmp_path / "x.npz", images=np.stack([pixels(0), pixels(1)]))
    inputs = open_inputs(tmp_path / "x.npz", DATA, RAW)
    some = inputs.subset([1])
    del inputs
    gc.collect()
    assert list(spooled.iterdir())
    some[0]
    del some
    gc.collect()
    assert not list(spooled.iterdir())
