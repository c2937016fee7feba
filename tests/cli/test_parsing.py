"""Texts of options to values."""

import pytest

from onnxlowrank.cli.parsing import COUNTS, SIZES, TIMES, quantity
from onnxlowrank.errors import OptionError


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("40k", COUNTS, 40e3),
        ("40K", COUNTS, 40e3),
        ("1.5g", COUNTS, 1.5e9),
        ("500m", COUNTS, 500e6),
        ("1T", COUNTS, 1e12),
        ("7", COUNTS, 7),
        ("12MS", TIMES, 12),
        ("12 ms", TIMES, 12),
        ("2S", TIMES, 2000),
        ("30us", TIMES, 0.03),
        ("20mb", SIZES, 20e6),
        ("20KB", SIZES, 20e3),
        ("20kb", SIZES, 20e3),
        ("1mib", SIZES, 2**20),
    ],
)
def test_units_in_either_case(text, units, value):
    assert quantity("--x", text, units) == pytest.approx(value)


@pytest.mark.parametrize("units", [COUNTS, SIZES, TIMES])
def test_no_two_units_differ_in_case_alone(units):
    assert len({unit.lower() for unit in units}) == len(units)


@pytest.mark.parametrize("text", ["k", "40kk", "4 0k", "inf", "nan", ""])
def test_what_is_no_number_with_a_unit(text):
    with pytest.raises(OptionError, match="write a number and one of K, M, G, T"):
        quantity("--max-macs", text, COUNTS)
