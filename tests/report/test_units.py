import pytest

from onnxlowrank.report.units import amount, scale


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 MACs"),
        (960, "960 MACs"),
        (999, "999 MACs"),
        (1000, "1 KMACs"),
        (40012, "40.01 KMACs"),
        (37_900, "37.9 KMACs"),
        (999_949, "999.9 KMACs"),
        (999_951, "1 MMACs"),
        (15_346_630_656, "15.35 GMACs"),
        (3.2e13, "32 TMACs"),
    ],
)
def test_amounts_have_units_that_fit(value, text):
    assert amount(value, "MACs") == text
    assert amount(value) == text.removesuffix("MACs").rstrip()


def test_one_unit_for_several():
    assert scale(15_346) == (1e3, "K")
    assert scale(12) == (1.0, "")
