import numpy as np
import pytest
from PIL import Image

from onnxlowrank.errors import InputDataError, OptionError
from onnxlowrank.inputs.preprocess import Preprocess, apply, preprocess_from_options
from onnxlowrank.inputs.specs import InputSpec


def spec(*shape, dtype="float32"):
    return InputSpec("data", shape, np.dtype(dtype))


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_imagenet_by_hand(photo):
    got = apply(photo, preprocess_from_options("imagenet"), spec(None, 3, 20, 30))
    want = (photo / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_caffe_is_bgr_minus_its_mean(photo):
    got = apply(photo, preprocess_from_options("caffe"), spec(1, 3, 20, 30))
    for plane, channel, mean in zip(got, (2, 1, 0), (103.939, 116.779, 123.68), strict=True):
        np.testing.assert_allclose(plane, photo[:, :, channel] - mean, atol=1e-4)


def test_unit_and_raw(photo):
    np.testing.assert_allclose(
        apply(photo, preprocess_from_options("unit"), spec(None, 20, 30, 3)), photo / 255, rtol=1e-6
    )
    np.testing.assert_array_equal(apply(photo, preprocess_from_options("raw"), spec(None, 20, 30, 3)), photo)


def test_without_options_the_image_is_resized_to_the_model(photo):
    got = apply(photo, preprocess_from_options("raw"), spec(None, 12, 8, 3))
    want = np.asarray(Image.fromarray(photo).resize((8, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got, want)


def test_dynamic_size_keeps_the_images_own(photo):
    raw = preprocess_from_options("raw")
    assert apply(photo, raw, spec(None, 3, None, None)).shape == (3, 20, 30)
    assert apply(photo, raw, spec(None, 3, None, 16)).shape == (3, 20, 16)


def test_resize_then_centre_crop(photo):
    how = preprocess_from_options("raw", resize=16, crop=(9, 12))
    got = apply(photo, how, spec(None, 9, 12, 3))
    resized = np.asarray(Image.fromarray(photo).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got, resized[3:12, 2:14])


def test_resize_takes_height_first_and_crop_works_alone(photo):
    how = preprocess_from_options("raw", resize=(6, 10))
    assert apply(photo, how, spec(None, None, None, 3)).shape == (6, 10, 3)
    how = preprocess_from_options("raw", crop=10)
    np.testing.assert_array_equal(apply(photo, how, spec(None, 10, 10, 3)), photo[5:15, 10:20])


def test_grey_model_is_fed_luminance_with_the_average_mean(photo):
    got = apply(photo, preprocess_from_options("unit", mean=[0.1, 0.2, 0.6], std=2), spec(None, 1, 20, 30))
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    np.testing.assert_allclose(got[0], (grey / 255 - 0.3) / 2, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_other_modes_become_rgb(photo, mode):
    image = Image.fromarray(photo).convert(mode)
    got = apply(image, preprocess_from_options("raw"), spec(None, 20, 30, 3))
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_grey_array_feeds_a_colour_model(photo):
    got = apply(photo[:, :, :1], preprocess_from_options("raw"), spec(None, 3, 20, 30))
    np.testing.assert_array_equal(got, np.stack([photo[:, :, 0]] * 3))


def test_byte_model_gets_bytes_and_half_model_halves(photo):
    got = apply(photo, preprocess_from_options("raw", channels="bgr"), spec(1, 20, 30, 3, dtype="uint8"))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, photo[:, :, ::-1])
    assert apply(photo, preprocess_from_options("imagenet"), spec(1, 3, 20, 30, dtype="float16")).dtype == np.float16
    with pytest.raises(OptionError, match=r"input 'data' .*preset raw"):
        apply(photo, preprocess_from_options("unit"), spec(1, 20, 30, 3, dtype="uint8"))


def test_layout_option_settles_what_the_shape_leaves_open(photo):
    how = preprocess_from_options("raw", layout="nchw")
    assert apply(photo, how, spec(None, None, 20, 30)).shape == (3, 20, 30)
    how = preprocess_from_options("raw", layout="nhwc")
    assert apply(photo, how, spec(1, 3, 4, 3)).shape == (3, 4, 3)


def test_preset_mean_turns_with_the_channels_and_given_values_do_not():
    assert preprocess_from_options("imagenet", channels="bgr").mean == (0.406, 0.456, 0.485)
    assert preprocess_from_options("imagenet", channels="bgr").std == (0.225, 0.224, 0.229)
    given = preprocess_from_options("caffe", channels="rgb", mean=[1, 2, 3], std=4, scale=0.5)
    assert given == Preprocess(mean=(1.0, 2.0, 3.0), std=(4.0,), scale=0.5, channels="rgb")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "tf"}, "preset 'tf'"),
        ({"mean": [1, 2]}, "mean has 2 values"),
        ({"mean": float("nan")}, "mean must be finite"),
        ({"mean": "grey"}, "mean must be a number"),
        ({"std": 0}, "std must be above 0"),
        ({"std": [1, -1, 1]}, "std must be above 0"),
        ({"std": []}, "std has 0 values"),
        ({"scale": 0}, "scale must not be 0"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"resize": 0}, "resize must be"),
        ({"resize": 22.5}, "resize must be"),
        ({"resize": (1, 2, 3)}, "resize must be"),
        ({"crop": "big"}, "crop must be"),
        ({"crop": 30, "resize": (40, 20)}, "crop 30x30"),
        ({"layout": "chw"}, "layout must be"),
        ({"channels": "grb"}, "channels must be"),
    ],
)
def test_wrong_options_are_named_in_one_sentence(options, words):
    with pytest.raises(OptionError) as caught:
        preprocess_from_options(**options)
    message = str(caught.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec(1, 5, 32, 32), "has 5 channels"),
        (spec(1, 7), "need 4 dimensions"),
        (spec(1, None, None, None), "give the layout"),
        (spec(1, 3, 8, 8, dtype="int64"), "floating-point or uint8"),
    ],
)
def test_inputs_that_cannot_take_images(photo, wanted, words):
    with pytest.raises(InputDataError, match="input 'data'") as caught:
        apply(photo, preprocess_from_options(), wanted)
    assert words in str(caught.value)


def test_size_options_must_agree_with_the_model(photo):
    with pytest.raises(OptionError, match=r"^resize gives .*16x16.*'data'.*\[1, 3, 20, 30\]"):
        apply(photo, preprocess_from_options(resize=16), spec(1, 3, 20, 30))
    with pytest.raises(OptionError, match=r"^crop gives .*8x8"):
        apply(photo, preprocess_from_options(resize=16, crop=8), spec(1, 3, None, 30))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "8 bits"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "8 bits"),
    ],
)
def test_unusable_images(image, words):
    with pytest.raises(InputDataError, match=words):
        apply(image, preprocess_from_options(), spec(1, 3, 4, 4))


def test_image_smaller_than_the_crop(photo):
    with pytest.raises(InputDataError, match=r"20x30 .*smaller than crop 24x24"):
        apply(photo, preprocess_from_options(crop=24), spec(1, 3, 24, 24))
