"""Which layers a pattern names."""

import pytest

from onnxlowrank.plan.applicability import matches


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("conv1", "conv1"),
        ("conv12", "conv*"),
        ("conv12", "conv??"),
        ("a[0]*?", "a[0]*?"),
        ("a[0]/b", "a[0]*"),
        ("a[0]", "*[0]"),
        ("a\nb", "a*b"),
        ("a.b", "a.b"),
        ("**", "**"),
    ],
)
def test_matches(name, pattern):
    assert matches(name, pattern)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("a0", "a[0]"), ("conv1", "conv"), ("conv", "conv?"), ("axb", "a.b"), ("Conv", "conv"), ("a", "")],
)
def test_does_not_match(name, pattern):
    assert not matches(name, pattern)
