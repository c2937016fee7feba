"""Names are shown, not obeyed."""

import pytest

from onnxlowrank.text import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("conv1/слой 日本 é<b>", "conv1/слой 日本 é<b>"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\r\0", r"a\nb\tc\r\x00"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202eabc\u2028", r"\u202eabc\u2028"),
        (b"\xff.onnx".decode("utf-8", "surrogateescape"), r"\xff.onnx"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_does_not_print_is_escaped(name, shown):
    assert printable(name) == shown
    shown.encode("utf-8")
