"""Settings for all tests."""

import os

# The matrices of the tests are too small for several threads, which only wait for each other where cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
