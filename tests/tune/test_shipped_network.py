"""The network of the quick start: minutes of training gain on images that nothing was learnt from."""

from pathlib import Path

import pytest

import onnxlowrank

pytest.importorskip("torch")

MODELS = Path(__file__).parents[2] / "models"
NETWORK, DATA, TEST = (MODELS / name for name in ("vgg_cifar10.onnx", "cifar10_calibration.npz", "cifar10_test.npz"))


@pytest.mark.slow
def test_an_int8_network_gains_too():
    made = onnxlowrank.optimize(
        NETWORK, speedup=4, target="macs", calibration=DATA, evaluate=TEST, precision="int8", finetune=None
    )
    tuned = onnxlowrank.finetune(NETWORK, made.model, data=DATA, evaluate=TEST, steps=150)
    assert tuned.is_better
    assert tuned.after.divergence < 0.95 * tuned.before.divergence
    assert tuned.after.accuracy[1] > tuned.before.accuracy[1] - 0.002


@pytest.mark.slow
@pytest.mark.parametrize("labels", [False, True])
def test_it_gains_on_images_it_has_not_seen(labels):
    made = onnxlowrank.optimize(NETWORK, speedup=5, target="macs", calibration=DATA, evaluate=TEST)
    tuned = onnxlowrank.finetune(NETWORK, made.model, data=DATA, evaluate=TEST, labels=labels, steps=300)
    assert tuned.is_better
    assert tuned.before.divergence == pytest.approx(made.agreement.divergence, rel=1e-3)
    assert tuned.after.divergence < 0.95 * tuned.before.divergence
    assert tuned.after.accuracy[1] > tuned.before.accuracy[1] - 0.002
