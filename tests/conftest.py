"""Settings for all tests."""

import os
import tempfile

import numpy as np
import pytest
from helpers.stopwatch import time_briefly

# The matrices of the tests are too small for several threads, which only wait for each other where cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

time_briefly()
# Measured times are remembered, but not beyond the tests nor from before.
_CACHE = tempfile.TemporaryDirectory(prefix="onnxlowrank-cache-")
os.environ["ONNXLOWRANK_CACHE"] = _CACHE.name


@pytest.fixture(autouse=True)
def same_draws(request):
    """Let every test draw the same numbers from its module's ``RNG``, whichever ran before it in its process."""
    if hasattr(request.module, "RNG"):
        bits = request.module.RNG.bit_generator
        bits.state = np.random.PCG64(np.random.SeedSequence(bits.seed_seq.entropy, spawn_key=(1,))).state
