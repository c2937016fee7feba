"""3-D convolutions: sampled, counted, taken apart as in "(2+1)D", timed, and through the whole pipeline."""

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.models import conv_model, error, normal, run
from helpers.stopwatch import no_stopwatch
from helpers.volumes import film_network, films

from onnxlowrank import optimize
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.chain import Window
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.probe import POSITIONS, Probe, add_probes
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure.one_layer import frame, framed, random_feeds
from onnxlowrank.passes import load_passes

RNG = np.random.default_rng(12)
PASSES = ["channel", "svd", "spatial", "asymmetric3d"]
RANKS = {"channel": (8,), "svd": (8, 8), "spatial": (16,), "asymmetric3d": (16, 8)}
MACS = {"n_a": 384 * 16 * 2 * 27, "n_b": 96 * 32 * 16 * 27, "n_c": 96 * 16 * 32 * 27, "n_d1": 384 * 32 * 16 * 9}
"""Of a film of 6 x 8 x 8; behind the stride of ``n_b`` it is 6 x 4 x 4, behind that of ``n_c`` 12 x 4 x 8."""


@pytest.fixture
def no_time(monkeypatch):
    no_stopwatch(monkeypatch, block=8)


def test_patches_times_the_kernel_are_the_responses():
    attributes = {"strides": [2, 1, 2], "pads": [1, 0, 1, 0, 2, 1], "dilations": [1, 2, 1]}
    model = conv_model(normal(RNG, 4, 3, 2, 3, 3), normal(RNG, 4), **attributes)
    (layer,), x = find_layers(model), normal(RNG, 2, 3, 5, 7, 6)
    window = Window(layer.kernel, layer.geometry)
    probed = add_probes(model, [Probe("patches", "x", False, (), window), Probe("responses", "y", False)])
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    patches, responses = session.run(None, {"x": x, POSITIONS: RNG.random(500, dtype=np.float32)})
    assert len(patches) == run(model, x=x)[0].size // 4
    assert error(patches @ layer.weight.reshape(4, -1).T + layer.bias, responses) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "first", "second", "names"),
    [
        ((3, 5, 7), (1, 5, 7), (3, 1, 1), ["spatial_hw", "spatial_d"]),
        ((1, 3, 5), (1, 3, 1), (1, 1, 5), ["spatial_h", "spatial_w"]),
        ((3, 1, 5), (3, 1, 1), (1, 1, 5), ["spatial_d", "spatial_w"]),
        ((3, 5, 1), (3, 1, 1), (1, 5, 1), ["spatial_d", "spatial_h"]),
    ],
)
def test_the_plane_comes_first_and_every_axis_is_in_one_link(kernel, first, second, names):
    model = conv_model(normal(RNG, 4, 3, *kernel), strides=[2, 3, 1], pads=[1, 2, 3, 4, 5, 6])
    (layer,), (spatial,) = find_layers(model), load_passes(["spatial"])
    steps = spatial.outline(layer, (5,)).steps
    assert [step.kernel for step in steps] == [first, second]
    assert [step.name for step in steps] == names
    assert tuple(np.multiply(*(step.geometry.strides for step in steps))) == (2, 3, 1)
    assert tuple(np.add(*(step.geometry.pads for step in steps))) == (1, 2, 3, 4, 5, 6)
    idle = kernel.index(1) if 1 in kernel else None
    assert idle is None or steps[1].geometry.strides[idle] == 1


@pytest.mark.usefixtures("no_time")
def test_a_film_of_separable_kernels_is_taken_apart_exactly():
    """Kernels that are a plane's filter times one in time: rank two for two planes."""
    planes, times = normal(RNG, 2, 3 * 9), normal(RNG, 6, 2, 3)
    kernel = np.einsum("kcs,fkt->fcts", planes.reshape(2, 3, 9), times).reshape(6, 3, 3, 3, 3)
    model = conv_model(kernel.astype(np.float32), normal(RNG, 6), pads=[1] * 6)
    x = normal(RNG, 8, 3, 5, 6, 6)
    result = optimize(model, max_macs=1, calibration=x, ranks={"conv": (2,)}, passes=["spatial"])
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 1e-3
    assert [list(node.attribute[0].ints) for node in result.model.graph.node] == [[1, 3, 3], [3, 1, 1]]


def test_layers_and_chains_are_timed_in_a_frame():
    model = conv_model(normal(RNG, 32, 16, 3, 3, 3), pads=[1] * 6)
    inputs = Inputs(lambda index: {"x": normal(RNG, 1, 16, 4, 6, 6)}, 1, 1, "random numbers")
    (layer,) = with_shapes(model, find_layers(model), inputs)
    assert layer.macs == 144 * 32 * 16 * 27
    (spatial,) = load_passes(["spatial"])
    alone = frame(layer, "cpu")
    for chain in (None, spatial.outline(layer, (16,))):
        one = framed(layer, chain, "cpu")
        onnx.checker.check_model(one, full_check=True)
        feeds = random_feeds(one)
        assert {name: value.shape for name, value in feeds.items()} == {"x/map": (1, 1, 4, 6, 6)}
        assert run(one, **feeds)[0].shape == run(alone, **feeds)[0].shape == (1, 1, 1, 1, 1)


@pytest.mark.usefixtures("no_time")
def test_through_the_whole_pipeline():
    model = film_network()
    result = optimize(model, target="macs", speedup=2, calibration=films(16), passes=PASSES)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.reached
    found = {layer.name: layer for layer in result.layers}
    assert {name: found[name].macs[0] for name in MACS} == MACS
    assert {found[name].method for name in ("n_b", "n_c")} <= set(PASSES)
    assert {node.op_type for node in result.model.graph.node} >= {"Conv", "ConvTranspose"}
    x = films(4, 4, 12, seed=3)  # of another size
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.1


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize("method", PASSES)
def test_ranks_by_hand(method):
    model, chosen = film_network(), dict.fromkeys(("n_b", "n_c"), RANKS[method])
    result = optimize(model, max_macs=1, calibration=films(24), ranks=chosen, passes=[method], only=list(chosen))
    assert {layer.method for layer in result.layers if layer.name in chosen} == {method}
    x = films(4, seed=3)
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.1


@pytest.mark.usefixtures("no_time")
def test_in_int8():
    model = film_network()
    only = ["n_b"]
    result = optimize(model, max_macs=1, calibration=films(8), precision="int8", passes=["spatial"], only=only)
    assert [layer.method for layer in result.layers].count("spatial") == 1
    onnx.checker.check_model(result.model, full_check=True)
    x = films(8, seed=3)
    assert error(run(result.model, x=x)[0], run(model, x=x)[0]) < 0.2
