"""Orders of nodes."""

from helpers.models import parse

from onnxlowrank.graph.walk import in_order

BODY = """g (float[4] x, bool t) => (float[4] y) {
    a = Neg (x)
    b = Abs (a)
    c = Exp (x)
    z = If (t) < then_branch = yes () => (float[4] p) { p = Neg (b) },
                 else_branch = no () => (float[4] q) { q = Abs (c) } >
    y = Add (z, a)
}"""


def test_what_is_in_order_stays_and_what_bodies_read_comes_first():
    nodes = list(parse(BODY).graph.node)
    assert in_order(nodes) == nodes
    a, b, c, z, y = nodes
    assert in_order([z, y, c, b, a]) == [a, b, c, z, y]
    assert in_order([c, z, b, a, y]) == [c, a, b, z, y]
    assert in_order([]) == []
