import numpy as np
import pytest
from helpers.inputs import RAW, same, spec

from onnxlowrank.errors import InputDataError, OptionError
from onnxlowrank.inputs.preprocess import preprocess_from_options
from onnxlowrank.inputs.synthetic import photograph, synthetic_inputs

COLOUR = (spec(None, 3, 32, 24),)


def test_same_seed_same_images_whatever_the_count():
    first = synthetic_inputs(COLOUR, RAW, 4, 7)
    same(first, synthetic_inputs(COLOUR, RAW, 9, 7)[:4])
    same(first, list(first))
    assert first.description == "4 synthetic images (seed 7)"
    assert first.labels is None
    assert not np.array_equal(first[0]["data"], first[1]["data"])
    assert not np.array_equal(first[0]["data"], synthetic_inputs(COLOUR, RAW, 4, 8)[0]["data"])


def test_images_are_preprocessed_like_images():
    raw = synthetic_inputs(COLOUR, RAW, 1, 0)[0]["data"]
    assert raw.shape == (1, 3, 32, 24)
    np.testing.assert_array_equal(raw, np.rint(raw))
    caffe = synthetic_inputs(COLOUR, preprocess_from_options("caffe"), 1, 0)[0]["data"]
    np.testing.assert_allclose(
        caffe, raw[:, ::-1] - np.array([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1), atol=1e-4
    )


def test_spectrum_falls_as_one_over_f():
    power = np.zeros(64)
    for index in range(20):
        luminance = photograph(np.random.default_rng(index), 128, 128).mean(axis=2)
        luminance -= luminance.mean()
        power += np.abs(np.fft.fft2(luminance)[0, :64]) ** 2
    frequencies = np.arange(2, 40)
    slope = np.polyfit(np.log(frequencies), np.log(power[2:40]) / 2, 1)[0]
    assert slope == pytest.approx(-1, abs=0.2)


def test_brightness_contrast_and_correlation_of_photographs():
    pixels = np.stack([photograph(np.random.default_rng(index), 48, 48) for index in range(200)]).astype(float)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2)), [124, 116, 104], atol=8)
    contrast = pixels.std(axis=(1, 2)).mean()
    assert 40 < contrast < 70
    assert 60 < pixels.std(axis=(0, 1, 2)).mean() < 80
    correlation = np.corrcoef(pixels.reshape(-1, 3).T)
    assert correlation[np.triu_indices(3, 1)].min() > 0.7
    assert correlation.min() < 0.99
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_sizes_and_batches():
    assert synthetic_inputs((spec(None, None, None, 1),), RAW, 1, 0)[0]["data"].shape == (1, 224, 224, 1)
    cropped = preprocess_from_options("raw", resize=40, crop=(32, 24))
    assert synthetic_inputs(COLOUR, cropped, 1, 0)[0]["data"].shape == (1, 3, 32, 24)
    batches = synthetic_inputs((spec(4, 3, 8, 8),), RAW, 6, 0)
    assert (len(batches), batches.batch) == (2, 4)
    feed = batches[1]["data"]
    assert feed.shape == (4, 3, 8, 8)
    assert not np.array_equal(feed[0], feed[1])
    assert synthetic_inputs((spec(1, 3, 1, 1),), RAW, 1, 0)[0]["data"].shape == (1, 3, 1, 1)


def test_bytes_for_byte_models():
    feed = synthetic_inputs((spec(1, 8, 8, 3, dtype="uint8"),), preprocess_from_options(), 1, 0)[0]["data"]
    assert feed.dtype == np.uint8
    assert feed.std() > 10


def test_other_inputs_get_normal_noise_or_ones():
    specs = (
        spec(None, 5, None, 16, name="radar", dtype="float16"),
        spec(None, 1000, name="vector"),
        spec(None, None, name="ids", dtype="int64"),
        spec(name="flag", dtype="bool"),
    )
    feeds = synthetic_inputs(specs, RAW, 2, 0)[1]
    assert feeds["radar"].shape == (1, 5, 224, 16)
    assert feeds["radar"].dtype == np.float16
    assert feeds["vector"].dtype == np.float32
    assert feeds["vector"].mean() == pytest.approx(0, abs=0.15)
    assert feeds["vector"].std() == pytest.approx(1, abs=0.1)
    np.testing.assert_array_equal(feeds["ids"], np.ones((1, 1), np.int64))
    assert feeds["flag"].shape == ()
    assert feeds["flag"].dtype == bool
    assert synthetic_inputs(specs[1:], RAW, 2, 0).description == "2 synthetic samples (seed 0)"


def test_refusals():
    with pytest.raises(OptionError, match="count"):
        synthetic_inputs(COLOUR, RAW, 0, 0)
    with pytest.raises(OptionError, match="seed"):
        synthetic_inputs(COLOUR, RAW, 1, -1)
    with pytest.raises(OptionError, match="resize"):
        synthetic_inputs(COLOUR, preprocess_from_options(resize=8), 1, 0)
    with pytest.raises(InputDataError, match="'data'"):
        synthetic_inputs((spec(1, dtype=object),), RAW, 1, 0)
    with pytest.raises(InputDataError, match="no inputs"):
        synthetic_inputs((), RAW, 1, 0)
