"""Approximations of single layers: what refitted responses and next layers take back."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.models import conv_model, normal, parse, run

from onnxlowrank.evaluate.measures import measures_of
from onnxlowrank.graph.chain import Chain, Step, as_chain
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.plan.layer_sensitivity import LayerSensitivity, refit

RNG = np.random.default_rng(3)
ROWS = normal(RNG, 400, 16)
BODY = "g (float[N, 16] x) => (float[1, N, 8] z) { a = MatMul (x, u) r = Relu (a) b = MatMul (r, v) zero = Constant \
    <value_ints = [0]> () z = Unsqueeze (b, zero) }"
"""Two layers; the output is no row of classes."""


def inputs_of(values):
    return Inputs(lambda index: {"x": values[index : index + 1]}, len(values), 1, "test rows")


def truncated(layer, rank):
    """Return the best chain of a rank for a fully connected layer whose inputs are white."""
    left, values, right = np.linalg.svd(layer.weight, full_matrices=False)
    narrow = Step("narrow", right[:rank])
    return Chain((narrow, Step("wide", (left * values)[:, :rank])))


def rows_of(response):
    """Return the rows ``[n, F]`` of a response ``[N, F, *spatial]``."""
    return np.moveaxis(response, 1, -1).reshape(-1, response.shape[1])


@pytest.mark.parametrize("group", [1, 2])
def test_a_linear_error_is_taken_back(group):
    """Responses that were mixed and moved are told what they should be."""
    kernel, bias = normal(RNG, 6, 4 // group, 3, 3), normal(RNG, 6)
    x = normal(RNG, 20, 4, 9, 9)
    mixed = conv_model(kernel, bias, 4, group=group, strides=[2, 2], pads=[1, 1, 1, 1])
    (layer,) = find_layers(mixed)
    found = rows_of(run(mixed, x=x)[0])
    mix, move = np.eye(6) + 0.3 * normal(RNG, 6, 6), normal(RNG, 6)
    true = (found @ mix.T + move).astype(np.float32)
    chain = refit(as_chain(layer), layer, found, true)
    again = rows_of(run(rewrite(mixed, [layer], {layer.name: chain}), x=x)[0])
    assert np.abs(again - true).max() < 0.1 * np.abs(found - true).max()
    np.testing.assert_allclose(again.mean(axis=0), true.mean(axis=0), atol=1e-4)


def test_few_rows_restore_the_mean_alone():
    model = parse("g (float[N, 16] x) => (float[N, 16] y) { y = MatMul (x, w) }", w=normal(RNG, 16, 16))
    (layer,) = find_layers(model)
    found = run(model, x=ROWS[:15])[0]
    chain = refit(as_chain(layer), layer, found, 2 * found + 3)
    assert len(chain.steps) == 1
    again = run(rewrite(model, [layer], {layer.name: chain}), x=ROWS)[0]
    np.testing.assert_allclose(again, run(model, x=ROWS)[0] + found.mean(axis=0) + 3, atol=1e-3)


def test_no_more_is_lost_than_the_next_layer_cannot_take_back():
    """Behind an activation the errors of a layer have parts that can be told from the true responses."""
    model = parse(BODY, u=normal(RNG, 16, 32), v=normal(RNG, 32, 8))
    first, second = find_layers(model)
    chain = truncated(first, 2)
    losses = []
    for rewritten in ([first], [first, second]):
        alone = LayerSensitivity(model, [first, second], rewritten, inputs_of(ROWS), measures_of(model))
        losses += alone.losses(first, [chain])
    (lost, loss), (same, with_next) = losses
    assert lost == same
    hidden = ROWS @ first.weight.T
    assert lost == pytest.approx((hidden - ROWS @ chain.dense_kernel().T).var(axis=0).sum() / hidden.var(axis=0).sum())
    assert with_next == pytest.approx(_best(hidden, ROWS @ chain.dense_kernel().T, second.weight), rel=0.15)
    assert with_next < 0.9 * loss


def _best(hidden, approximated, weight):
    """Return the error of the output over its variance where both layers are followed by their best linear maps."""

    def mapped(found, true):
        columns = np.column_stack([found, np.ones(len(found))])
        return columns @ np.linalg.lstsq(columns, true, rcond=1e-4)[0]

    true = np.maximum(hidden, 0) @ weight.T
    found = mapped(np.maximum(mapped(approximated, hidden), 0) @ weight.T, true)
    return ((found - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()


def test_a_layer_behind_another_is_judged_from_where_it_stands():
    """Going from layer to layer, or back, changes nothing but the time it takes."""
    model = parse(BODY, u=normal(RNG, 16, 32), v=normal(RNG, 32, 8))
    layers = find_layers(model)
    early, late = truncated(layers[0], 2), truncated(layers[1], 4)
    direct, walked = (LayerSensitivity(model, layers, layers, inputs_of(ROWS), measures_of(model)) for _ in range(2))
    (expected,) = direct.losses(layers[1], [late])
    (before,) = walked.losses(layers[0], [early])
    assert walked.losses(layers[1], [late]) == [pytest.approx(expected, rel=1e-4)]
    assert walked.losses(layers[0], [early, early]) == [pytest.approx(before, rel=1e-4)] * 2


def test_an_offset_is_no_loss():
    model = parse(BODY, u=normal(RNG, 16, 32), v=normal(RNG, 32, 8))
    first, second = find_layers(model)
    alone = LayerSensitivity(model, [first, second], [first], inputs_of(ROWS), measures_of(model))
    moved = replace(as_chain(first), bias=np.full(32, 5, np.float32))
    ((lost, loss),) = alone.losses(first, [moved])
    assert lost < 1e-9
    assert loss < 1e-6


def test_a_layer_that_nothing_judged_depends_on_loses_of_its_own_response():
    """Behind a choice of rows; the rows found differ in number, and are judged in front of that."""
    body = """g (float[N, 16] x) => (float[K, 8] z) { a = MatMul (x, u) s = ReduceSum <keepdims = 0> (a, one)
        i = NonZero (s) t = Transpose (i) rows = GatherND (a, t) z = MatMul (rows, v) }"""
    model = parse(body, u=normal(RNG, 16, 32), v=normal(RNG, 32, 8), one=np.array([1]))
    first, second = find_layers(model)
    measures = measures_of(model)
    assert [one.tensor for one in measures] == ["a", "s"]
    network = LayerSensitivity(model, [first, second], [first, second], inputs_of(ROWS), measures)
    ((lost, loss),) = network.losses(second, [truncated(second, 4)])
    assert 0 < lost == loss
    ((_, loss),) = network.losses(first, [truncated(first, 4)])
    assert loss > 0
