"""Sums of parts against the covariance of all rows."""

import numpy as np

from onnxlowrank.quantize.row_moments import RowMoments


def test_they_are_those_of_all_rows_also_of_large_means():
    rng = np.random.default_rng(0)
    read = (rng.standard_normal((60, 2, 5)) + 1e3).astype(np.float32)
    read[:, 1, 3] = 7.0
    responses = rng.standard_normal((60, 6)).astype(np.float32)
    moments = RowMoments()
    for part in (slice(0, 20), slice(20, 25), slice(25, 60)):
        moments.add(read[part], responses[part])
    assert moments.rows == 60
    for group in (0, 1):
        rows, x = slice(3 * group, 3 * group + 3), read[:, group].astype(np.float64)
        wanted = np.cov(x.T, bias=True)
        assert np.abs(moments.second(group, centred=True) - wanted).max() <= 1e-5
        assert np.abs(moments.second(group, centred=False) - x.T @ x / 60).max() <= 0.01
        y = responses[:, rows].astype(np.float64)
        cross = (y - y.mean(axis=0)).T @ x / 60
        assert np.abs(moments.cross(group, rows) - cross).max() <= 1e-5
    assert moments.second(1, centred=True)[3, 3] == 0


def test_without_responses_there_is_nothing_to_fit_to():
    moments = RowMoments()
    moments.add(np.ones((3, 1, 2), np.float32))
    assert moments.cross(0, slice(0, 4)) is None
