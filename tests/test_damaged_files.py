"""Files that are damaged, at random: whatever is wrong with one, an error of ours says so."""

import numpy as np
import pytest
from helpers.damage import VALID, read, rewrapped

_QUICK, _SLOW = 13, 320  # of every kind of file


@pytest.mark.parametrize("name", VALID)
def test_valid_files_are_read(tmp_path, name):
    assert read(tmp_path, name, VALID[name]) is None


@pytest.mark.parametrize("name", VALID)
def test_damaged_files_raise_nothing_but_errors_of_ours(tmp_path, name):
    _read_damaged(tmp_path, name, range(_QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("name", VALID)
def test_many_damaged_files_raise_nothing_but_errors_of_ours(tmp_path, name):
    _read_damaged(tmp_path, name, range(_QUICK, _QUICK + _SLOW))


def _read_damaged(folder, name, seeds):
    for seed in seeds:
        made, content = rewrapped(np.random.default_rng([seed, list(VALID).index(name)]), name)
        try:
            read(folder, made, content)
        except BaseException as error:
            error.add_note(f"{name}, seed {seed}")
            raise
