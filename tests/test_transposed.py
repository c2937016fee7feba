"""Transposed convolutions: found, counted, sampled, and through the whole pipeline."""

import numpy as np
import onnxruntime
import pytest
from helpers.decoder import unet
from helpers.models import error, normal, parse, run, transposed_model
from helpers.stopwatch import no_stopwatch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxlowrank import optimize
from onnxlowrank.graph.chain import Window
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.index import Index
from onnxlowrank.graph.probe import POSITIONS, Probe, add_probes
from onnxlowrank.graph.refusals import refusal

RNG = np.random.default_rng(6)
PASSES = ["channel", "svd", "spatial", "asymmetric3d"]


@st.composite
def transposed(draw):
    """Draw a network of one transposed convolution of one to three axes, and an input."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    axes = draw(st.integers(1, 3))

    def pair(low, high):
        return [draw(st.integers(low, high)) for _ in range(axes)]

    f, c, group = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel, strides = pair(1, 4), pair(1, 3)
    attributes = {"strides": strides, "dilations": pair(1, 2)}
    attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes |= {"pads": pair(0, 1) + pair(0, 1)} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    model = transposed_model(normal(rng, f * group, c, *kernel), normal(rng, f * group), group, **attributes)
    size = pair(1, 6 if axes < 3 else 3)
    assume(min(find_layers(model)[0].geometry.output_size(tuple(size), tuple(kernel))) > 0)
    return model, normal(rng, draw(st.integers(1, 2)), c * group, *size)


@settings(max_examples=80, deadline=None)
@given(transposed())
def test_patches_times_the_kernel_are_the_responses(case):
    """What is sampled under the window of a transposed convolution is what its response is linear in."""
    model, x = case
    (layer,) = find_layers(model)
    y = run(model, x=x)[0]
    assert layer.geometry.output_size(x.shape[2:], layer.kernel) == y.shape[2:]
    if layer.group > 1:
        return
    window = Window(layer.kernel, layer.geometry)
    probed = add_probes(model, [Probe("patches", "x", False, (), window), Probe("responses", "y", False)])
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    patches, responses = session.run(None, {"x": x, POSITIONS: RNG.random(4000, dtype=np.float32)})
    assert len(patches) == y.size // y.shape[1]
    assert error(patches @ layer.weight.reshape(layer.outputs, -1).T + layer.bias, responses) < 1e-5


@pytest.mark.parametrize("group", [1, 2])
def test_the_weight_is_stored_with_its_input_maps_first(group):
    weight = normal(RNG, 6, 4, 3, 2)
    layer = find_layers(transposed_model(weight, group=group))[0]
    np.testing.assert_array_equal(layer.weight, weight)
    assert (layer.op, layer.group, layer.outputs, layer.inputs) == ("ConvTranspose", group, 6, 4 * group)


@pytest.mark.parametrize(
    ("shape", "attributes", "reason"),
    [
        ((4, 4, 3, 3), {"output_shape": [9, 9]}, "its output_shape is given"),
        ((4, 4, 2, 2, 2, 2), {}, "4-D transposed convolution"),
    ],
)
def test_those_that_are_kept(shape, attributes, reason):
    model = transposed_model(normal(RNG, *shape[:4]), **attributes)
    if len(shape) > 4:
        model = parse("g (float[N, 4, 5, 5, 5, 5] x) => (float y) { y = ConvTranspose (x, w) }", w=normal(RNG, *shape))
    assert find_layers(model) == []
    assert reason in refusal(Index.of(model), model.graph.node[0])


@pytest.fixture
def no_time(monkeypatch):
    no_stopwatch(monkeypatch, block=8)


def smooth(count, size, seed=0):
    noise = np.random.default_rng(seed).standard_normal((count, 3, size // 4, size // 4))
    return np.kron(noise, np.ones((1, 1, 4, 4))).astype(np.float32)


@pytest.mark.usefixtures("no_time")
def test_a_decoder_through_the_whole_pipeline():
    model = unet()
    result = optimize(model, target="macs", speedup=2, calibration=smooth(16, 32), metric="psnr", passes=PASSES)
    assert result.reached
    methods = {layer.name: layer.method for layer in result.layers}
    assert {methods["n_f"], methods["n_i"]} <= set(PASSES)
    assert result.agreement.merit.after > 50
    assert any(node.op_type == "ConvTranspose" for node in result.model.graph.node)
    x = smooth(4, 48, seed=3)  # at another size
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.1


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize("method", PASSES)
def test_ranks_by_hand(method):
    model, ranks = unet(), {"channel": (16,), "svd": (16, 16), "spatial": (32,), "asymmetric3d": (32, 16)}[method]
    chosen = dict.fromkeys(("n_f", "n_i"), ranks)
    result = optimize(model, max_macs=1, calibration=smooth(16, 32), ranks=chosen, passes=[method], only=list(chosen))
    assert {layer.method for layer in result.layers if layer.name in chosen} == {method}
    x = smooth(4, 32, seed=3)
    assert np.linalg.norm(run(result.model, x=x)[0] - run(model, x=x)[0]) < 0.1 * np.linalg.norm(run(model, x=x)[0])
