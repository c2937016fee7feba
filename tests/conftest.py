"""Settings for all tests."""

import os
import tempfile

# The matrices of the tests are too small for several threads, which only wait for each other where cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Measured times are remembered, but not beyond the tests nor from before.
os.environ["ONNXLOWRANK_CACHE"] = tempfile.mkdtemp(prefix="onnxlowrank-cache-")
