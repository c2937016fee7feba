"""Statistics of layers with several places, against those of all their rows."""

import numpy as np
from helpers.models import normal, parse, run

from onnxlowrank.calibrate.capture import ROWS_PER_LAYER, RowStore
from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.calibrate.statistics import Calibration, collect_statistics
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.passes import load_passes
from onnxlowrank.passes.base import RESPONSE
from onnxlowrank.progress import Silent

RNG = np.random.default_rng(31)
BODY = """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y, float[N, 3, 4, 4] z) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    y = Add (a, x)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (y)
    c = Conv <pads = [1, 1, 1, 1]> (m, w, b)
    z = Relu (c)
}"""


def rows(tensor):
    return np.moveaxis(tensor, 1, -1).reshape(-1, tensor.shape[1])


def collected(model, feeds, held_out=()):
    """Return the one layer, its statistics and its stored preactivations."""
    inputs = Inputs(lambda index: {"x": feeds[index]}, len(feeds), 1, "rows")
    layers = with_shapes(model, find_layers(model), inputs)
    passes = {one.name: one for one in load_passes(["channel", "spatial"])}
    with RowStore() as store:
        about = Calibration(model, layers, {layers[0].name: passes}, inputs, store, held_out=held_out)
        found = collect_statistics(about, Silent())
        return layers[0], found[layers[0].name], store.read(layers[0].name)


def test_moments_and_preactivations_are_those_of_all_places():
    model = parse(BODY, w=normal(RNG, 3, 3, 3, 3) / 9, b=normal(RNG, 3))
    del model.graph.output[:]
    model.graph.output.extend(
        parse(BODY.replace("4] z)", "4] z, float[N, 3, 8, 8] a, float[N, 3, 4, 4] c)")).graph.output
    )
    feeds = [normal(RNG, 1, 3, 8, 8) for _ in range(4)]
    layer, statistics, stored = collected(model, feeds, held_out={3})
    assert [(place.input_shape, place.output_shape) for place in layer.places] == [
        ((1, 3, 8, 8), (1, 3, 8, 8)),
        ((1, 3, 4, 4), (1, 3, 4, 4)),
    ]
    ran = [dict(zip("yzac", run(model, x=x), strict=True)) for x in feeds]
    responses = np.concatenate([rows(one[name]) for one in ran[:3] for name in "ac"]).astype(np.float64)
    assert statistics.moments[RESPONSE].count == len(responses) == 3 * 80
    np.testing.assert_allclose(statistics.moments[RESPONSE].mean, responses.mean(axis=0), atol=1e-5)
    held_out = np.concatenate([rows(ran[3][name]) for name in "ac"])
    np.testing.assert_allclose(statistics.unseen.mean, held_out.mean(axis=0), atol=1e-5)
    targets = np.concatenate([rows(one[name]) for one in ran for name in "ac"])  # a is an output, so not part of a sum
    np.testing.assert_allclose(stored, targets, atol=1e-5)


def test_as_many_rows_as_of_a_layer_of_one_place():
    body = "g (float[N, 2, 64, 64] x) => (float[N, 2, 64, 64] y) {{ {} }}"
    steps = "".join(f"y{t} = Conv <pads = [1, 1, 1, 1]> (y{t - 1}, w) " for t in range(1, 10))
    steps = steps.replace("y0", "x").replace("y9", "y")
    feeds = [normal(RNG, 1, 2, 64, 64) for _ in range(16)]
    layer, statistics, stored = collected(parse(body.format(steps), w=normal(RNG, 2, 2, 3, 3) / 4), feeds)
    assert len(layer.places) == 9
    assert ROWS_PER_LAYER <= len(stored) == statistics.moments[RESPONSE].count <= ROWS_PER_LAYER + 9 * 16
