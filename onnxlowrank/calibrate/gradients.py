"""How much the loss depends on each weight: squared gradients, by back-propagation in PyTorch (Denton 2014, Eq. 1-2).

    alpha_p^2 = sum_n sum_l (d/dW_p of the cross-entropy of input n with the label l)^2

over sample inputs ``n`` and, for each, the ``h`` wrong classes ``l`` that the network finds most probable (the "most
dangerous mistakes"). What is back-propagated from the logits is the vector of class probabilities less the indicator
of ``l``. A class is wrong when it is not the input's label or, where the inputs have no labels, not the network's own
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxlowrank.decompose.spectrum import Float64Array
from onnxlowrank.errors import ModelError, NotFiniteError, OptionError, UnsupportedModelError
from onnxlowrank.graph.index import is_standard
from onnxlowrank.graph.layer import Layer
from onnxlowrank.graph.probe import expose
from onnxlowrank.inputs.feeds import Inputs
from onnxlowrank.progress import Advance

Torch = Any
"""An object of PyTorch, which may be missing, and its types with it."""

_MOST_SAMPLES = 100


@dataclass(frozen=True, eq=False)
class _Weight:
    """The tensor that holds a layer's weight in PyTorch; the layer has ``scale`` times its values."""

    tensor: Torch
    transposed: bool = False
    scale: float = 1.0

    def squares(self, total: Torch, layer: Layer) -> Float64Array:
        """Return sums of squared gradients, laid out like the tensor, as ``[F, C/group, T]`` of the layer's weight."""
        values: Float64Array = total.numpy() / self.scale**2
        return np.ascontiguousarray(
            (values.swapaxes(0, 1) if self.transposed else values).reshape(*layer.weight.shape[:2], -1)
        )


def squared_gradients(
    model: onnx.ModelProto, layers: Sequence[Layer], inputs: Inputs, advance: Advance, h: int = 3
) -> dict[str, Float64Array]:
    """Return ``alpha^2 [F, C/group, T]`` of every layer by its name; fully connected layers have ``T = 1``.

    Args:
        model: The normalised network, a classifier: its one output is ``[N, classes]``, logits or their Softmax.
        layers: Layers of the network.
        inputs: Sample inputs; at most 100 of the samples, evenly spread, are used.
        advance: Called with shares of the work, 1 in all.
        h: Wrong classes for each sample, fewer where there are not so many.

    Raises:
        ModelError: The network is no such classifier, PyTorch cannot run it, or its gradients are not finite.
        OptionError: PyTorch or onnx2torch is not installed.
    """
    torch, onnx2torch = _libraries()
    if len(model.graph.output) != 1:
        raise UnsupportedModelError(
            f"gradients need a network with one output, not {len(model.graph.output)}; use another metric"
        )
    if not layers:
        advance(1)
        return {}
    logits_model = _up_to_logits(model)
    feed_names = [value.name for value in logits_model.graph.input]
    network, modules = _converted(onnx2torch, logits_model)
    weights = [_weights(network, modules, layer) or [_Weight(torch.zeros(layer.weight.shape))] for layer in layers]
    tensors = [[weight.tensor.requires_grad_(True) for weight in its] for its in weights]
    totals = [torch.zeros_like(its[0], dtype=torch.float64) for its in tensors]

    samples = np.unique(np.linspace(0, len(inputs) * inputs.batch - 1, _MOST_SAMPLES).astype(int))
    for feed in np.unique(samples // inputs.batch):
        feeds = inputs[feed]
        logits = _run(network, [torch.tensor(feeds[name]) for name in feed_names])
        elements = samples[samples // inputs.batch == feed] % inputs.batch
        labels = None if inputs.labels is None else inputs.labels[feed]
        for difference in _differences(torch, logits, elements, labels, h):
            gradients = torch.autograd.grad(
                logits,
                [tensor for its in tensors for tensor in its],
                difference,
                retain_graph=True,
                materialize_grads=True,
            )
            remaining = iter(gradients)
            for total, its in zip(totals, tensors, strict=True):
                total += sum(next(remaining).double() for _ in its).square()
        advance(len(elements) / len(samples))
    found = {
        layer.name: its[0].squares(total, layer) for layer, its, total in zip(layers, weights, totals, strict=True)
    }
    for name, squares in found.items():
        if not np.isfinite(squares).all():
            raise NotFiniteError(
                f"the gradients of layer {name} are not finite on {inputs.description}; use another metric"
            )
    return found


def _libraries() -> tuple[Any, Any]:
    """Import PyTorch and its converter, which only gradients need."""
    try:
        return import_module("torch"), import_module("onnx2torch")
    except ImportError as error:
        raise OptionError(
            "gradients need PyTorch and onnx2torch; install them with pip install 'onnxlowrank[finetune]' "
            "or use another metric"
        ) from error


def _up_to_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with one output that ends before its last Softmax, if it ends in one."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        if output in node.output and is_standard(node, "Softmax"):
            output = node.input[0]
    return expose(model, [output])


def _converted(onnx2torch: Any, model: onnx.ModelProto) -> tuple[Torch, dict[str, str]]:
    """Return the network in PyTorch, nothing requiring gradients, and the name of each node's module.

    Modules are called like their nodes, less what is not allowed there; so nodes get plain names before.
    """
    modules = {}
    for position, node in enumerate(model.graph.node):
        modules[node.name] = f"node_{position}"
        node.name = modules[node.name]
    try:
        return onnx2torch.convert(model).eval().requires_grad_(False), modules
    except Exception as error:  # whatever the converters trip over
        raise _unsupported(error) from error


def _weights(network: Torch, modules: Mapping[str, str], layer: Layer) -> list[_Weight]:
    """Return the weights of a layer, none if nothing depends on it.

    Convolutions have one each, copies of the same where the layer has several places; what reads an initializer shares
    it. A gradient by the layer's weight is the sum of those by these.
    """
    found = [
        _weight(network, modules[place.name], layer.geometry.transposed)
        for place in layer.places
        if place.name in modules
    ]
    return list({id(weight.tensor): weight for weight in found}.values())


def _weight(network: Torch, name: str, transposed: bool) -> _Weight:
    """Return the weight of a module: its own, that of the convolution behind a padding, or an initializer it reads."""
    module = network.get_submodule(name)
    for parameter_name, parameter in module.named_parameters():
        if parameter_name.endswith("weight"):
            return _Weight(parameter, transposed)
    call = next(node for node in network.graph.nodes if node.target == name)
    buffer = network.get_buffer(call.args[1].target)
    return _Weight(buffer, not getattr(module, "trans_b", False), getattr(module, "alpha", 1.0))


def _run(network: Torch, values: Sequence[Torch]) -> Torch:
    """Return the logits ``[N, classes]``."""
    try:
        logits = network(*values)
    except Exception as error:  # an operator that PyTorch understands otherwise
        raise _unsupported(error) from error
    if logits.ndim != 2 or logits.shape[1] < 2:
        shape = list(logits.shape)
        raise UnsupportedModelError(
            f"gradients need a classifier, with the output [N, classes], not {shape}; use another metric"
        )
    return logits


def _differences(
    torch: Any, logits: Torch, elements: NDArray[np.integer], labels: NDArray[np.int64] | None, h: int
) -> Iterator[Torch]:
    """Yield the derivatives by the logits: for each of these elements of the batch, for each of its ``h`` mistakes."""
    probabilities = torch.softmax(logits.detach(), dim=1)
    for element in elements[elements < len(logits)]:  # batches of a reader may differ
        ranking = probabilities[element].argsort(descending=True).tolist()
        right = ranking[0] if labels is None else labels[element]
        for mistake in [index for index in ranking if index != right][:h]:
            difference = torch.zeros_like(logits)
            difference[element] = probabilities[element]
            difference[element, mistake] -= 1
            yield difference


def _unsupported(error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ModelError(f"PyTorch cannot run the network ({reason}); use another metric")
