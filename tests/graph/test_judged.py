"""What outputs are judged by: themselves, or the nearest tensors of real numbers that decide them."""

import numpy as np
import pytest
from helpers.models import normal, parse
from onnx import TensorProto, helper

from onnxlowrank.graph.judged import depends_on, judged_tensors

RNG = np.random.default_rng(3)
W = normal(RNG, 4, 3)


def judged(tail, outputs, opset=17, **constants):
    model = parse(f"g (float[N, 4] x) => ({outputs}) {{ m = MatMul (x, w) {tail} }}", opset=opset, w=W, **constants)
    return {one.tensor: (one.outputs, one.class_axis) for one in judged_tensors(model)}


@pytest.mark.parametrize(
    ("tail", "output", "expected"),
    [
        ("y = Relu (m)", "float[N, 3] y", {"y": (("y",), None)}),
        ("y = ArgMax <axis = 1> (m)", "int64[N, 1] y", {"m": (("y",), None)}),
        ("r = Relu (m) y = Cast <to = 7> (r)", "int64[N, 3] y", {"r": (("y",), None)}),
        ("zero = Constant <value_float = 0.0> () y = Greater (m, zero)", "bool[N, 3] y", {"m": (("y",), None)}),
        (
            "k = Constant <value_ints = [2]> () y, i = TopK (m, k)",
            "float[N, 2] y, int64[N, 2] i",
            {"y": (("y",), None), "m": (("i",), None)},
        ),
        ("y = Softmax <axis = 1> (m)", "float[N, 3] y", {"y": (("y",), 1)}),
        ("y = Softmax <axis = -1> (m)", "float[N, 3] y", {"y": (("y",), 1)}),
        ("y = LogSoftmax <axis = 1> (m)", "float[N, 3] y", {"y": (("y",), 1)}),
        ("s = Softmax <axis = 1> (m) y = Identity (s)", "float[N, 3] y", {"y": (("y",), 1)}),
        (
            "s = Softmax <axis = 1> (m) i = ArgMax <axis = 1> (s) y = Cast <to = 1> (i)",
            "float[N, 1] y",
            {"y": (("y",), None)},
        ),
        (
            "s = Softmax <axis = 1> (m) one = Constant <value_ints = [-1, 3]> () y = Reshape (s, one)",
            "float[M, 3] y",
            {"y": (("y",), 1)},
        ),
        ("z = NonZero (m) y = Cast <to = 1> (z)", "float[2, K] y", {"m": (("y",), None)}),
        ("z = NonZero (m) t = Transpose (z) y = GatherND (m, t)", "float[K] y", {"m": (("y",), None)}),
    ],
)
def test_the_nearest_real_tensors_decide(tail, output, expected):
    assert judged(tail, output) == expected


def test_softmax_of_old_opsets_has_axis_one():
    assert judged("y = Softmax (m)", "float[N, 3] y", opset=11) == {"y": (("y",), 1)}


def test_sizes_read_from_shapes_are_fixed():
    tail = "s = Shape (m) f = Constant <value_ints = [1]> () e = Expand (m, s) y = Relu (e)"
    assert list(judged(tail, "float[N, 3] y")) == ["y"]


def test_an_output_that_nothing_real_decides_has_no_judge():
    model = parse("g (int64[N, 4] x) => (int64[N, 4] y) { y = Add (x, x) }")
    assert judged_tensors(model) == []


def test_a_network_of_its_inputs_alone_is_not_judged_by_them():
    model = parse("g (float[N, 4] x) => (int64[N, 1] y) { y = ArgMax <axis = 1> (x) }")
    assert judged_tensors(model) == []


def test_labels_and_probabilities_of_classical_models():
    model = parse("g (float[N, 4] x) => (float[N, 3] p) { m = MatMul (x, w) p = Softmax <axis = 1> (m) }", w=W)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.node.append(
        helper.make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"])
    )
    maps = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    del model.graph.output[:]
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(maps)))
    (found,) = judged_tensors(model)
    assert (found.tensor, found.outputs, found.class_axis) == ("p", ("z",), 1)


def test_what_tensors_depend_on():
    model = parse(
        "g (float[N, 4] x) => (float[N, 3] y, float[N, 3] z) { m = MatMul (x, w) y = Relu (m) z = Neg (m) }", w=W
    )
    assert depends_on(model, {"y"}) == {"y", "m", "x", "w"}


def test_what_stems_from_shapes_alone_decides_nothing_and_is_no_choice_of_the_data():
    """As the grid of anchors that YOLOv8 computes from the size of its maps."""
    tail = """
        s = Shape (m) first = Constant <value_int = 0> () count = Gather (s, first)
        real = Cast <to = 1> (count) none = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> ()
        steps = Range (none, real, one) far = Constant <value_ints = [1]> () grid = Unsqueeze (steps, far)
        moved = Add (m, grid)
    """
    assert judged(f"{tail} y = Mul (moved, grid)", "float[N, 3] y") == {"y": (("y",), None)}
    both = f"{tail} both = Concat <axis = 1> (moved, grid) y = ArgMax <axis = 1> (both)"
    assert judged(both, "int64[N, 1] y") == {"both": (("y",), None)}
    numbered = "s = Shape (m) ones = ConstantOfShape (s) z = NonZero (ones) r = Cast <to = 1> (z) t = Transpose (r)"
    assert judged(f"{numbered} u = MatMul (t, v) y = Add (m, u)", "float[N, 3] y", v=normal(RNG, 2, 3)) == {
        "y": (("y",), None)
    }
    apart = f"{tail} a = Cast <to = 7> (moved) b = Cast <to = 7> (grid) y = Concat <axis = 1> (a, b)"
    assert judged(apart, "int64[N, 4] y") == {"moved": (("y",), None)}
