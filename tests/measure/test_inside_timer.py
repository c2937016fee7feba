"""Chains timed inside the network they belong to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.models import normal

from onnxlowrank.calibrate.shapes import with_shapes
from onnxlowrank.graph.find_layers import find_layers
from onnxlowrank.graph.normalise import normalise
from onnxlowrank.graph.permute import fold_gathers
from onnxlowrank.graph.rewrite import rewrite
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.measure import inside_timer
from onnxlowrank.measure.cache import Cache
from onnxlowrank.measure.inside_timer import InsideTimer
from onnxlowrank.measure.sessions import Target
from onnxlowrank.passes import load_passes

VGG = Path(__file__).parents[2] / "models" / "vgg_cifar10.onnx"


@pytest.fixture(scope="module")
def network():
    model = normalise(onnx.load(VGG))
    feeds = {"image": normal(np.random.default_rng(0), 1, 3, 32, 32)}
    return model, with_shapes(model, find_layers(model), Inputs(lambda index: feeds, 1, 1, "one")), feeds


def chains_of(layers, **ranks):
    (channel,) = load_passes(["channel"])
    return {layer.name: channel.outline(layer, (ranks[layer.name],)) for layer in layers if layer.name in ranks}


class Write:
    """Writes networks, and counts them."""

    def __init__(self, model, layers):
        self.model, self.layers, self.written = model, layers, 0

    def __call__(self, chains):
        self.written += 1
        return fold_gathers(rewrite(self.model, self.layers, chains))


def test_layers_and_chains_are_told_and_remembered(network, tmp_path):
    model, layers, feeds = network
    timer, write = InsideTimer(model, layers, feeds, Target(), Cache(tmp_path)), Write(model, layers)
    assert timer.dense.keys() == {layer.name for layer in layers}
    assert sum(timer.dense.values()) < timer.whole
    chains = chains_of(layers, conv2_2=8, conv3_1=8)
    (found,) = timer.milliseconds([chains], write)
    assert found.keys() == chains.keys()
    for name, links in found.items():
        assert min(links) > 0
        assert sum(links) < timer.dense[name], "an eighth of the operations"
        assert len(links) == len(chains[name].steps)
    assert write.written == 1
    (again,) = timer.milliseconds([chains], write)
    assert again == {name: pytest.approx(links) for name, links in found.items()}
    later = InsideTimer(model, layers, feeds, Target(), Cache(tmp_path))
    shares = {name: sum(one) / later.dense[name] for name, one in later.milliseconds([chains], write)[0].items()}
    assert shares == pytest.approx({name: sum(one) / timer.dense[name] for name, one in found.items()})
    assert write.written == 1, "they were remembered"
    first, second = timer.milliseconds([chains, chains_of(layers, conv2_2=8, conv3_1=16)], write)
    assert first == {name: pytest.approx(links) for name, links in found.items()}
    assert second.keys() == chains.keys()
    assert write.written == 2, "one of them is new"


def test_what_slows_the_machine_down_is_no_share_of_the_chains(network, tmp_path, monkeypatch):
    """The original, run in turns, takes three times as long as before, and so do the chains."""
    model, layers, feeds = network
    timer = InsideTimer(model, layers, feeds, Target(), Cache(tmp_path))
    dense, real = dict(timer.dense), inside_timer.profile_beside

    def slow(models, other, feeds, target, seconds):
        (times,), beside = real(models, other, feeds, target, seconds)
        slower = [replace(one, milliseconds=tuple(3 * value for value in one.milliseconds)) for one in times]
        return [slower], 3 * beside

    chains = chains_of(layers, conv2_2=8)
    monkeypatch.setattr(inside_timer, "profile_beside", slow)
    (found,) = timer.milliseconds([chains], Write(model, layers))
    assert 0 < sum(found["conv2_2"]) < dense["conv2_2"]


def test_chains_that_leave_no_node_are_not_told(network, tmp_path, monkeypatch):
    model, layers, feeds = network
    timer = InsideTimer(model, layers, feeds, Target(), Cache(tmp_path))
    assert timer.dense
    monkeypatch.setattr(inside_timer, "profile_beside", lambda *given: ([[]], 1.0))
    assert timer.milliseconds([chains_of(layers, conv2_2=8)], Write(model, layers)) == [{}]


def test_on_cuda_no_layer_is_told(network, tmp_path, monkeypatch):
    model, layers, feeds = network
    monkeypatch.setattr(inside_timer, "measure", lambda models, *given: [type("Latency", (), {"median": 3.0})])
    timer = InsideTimer(model, layers, feeds, Target("cuda"), Cache(tmp_path))
    assert (timer.dense, timer.whole) == ({}, 3.0)
    assert timer.milliseconds([chains_of(layers, conv2_2=8)], Write(model, layers)) == [{}]
