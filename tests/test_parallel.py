"""Work in threads: in order, all of it or an exception, BLAS held to one thread meanwhile."""

import os
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from onnxlowrank.measure.sessions import all_threads
from onnxlowrank.parallel import available_cores, in_parallel, one_blas_thread


def test_results_come_in_the_order_of_the_items():
    def slow_first(item):
        time.sleep(0.02 * (item == 0))
        return item**2

    assert list(in_parallel(slow_first, range(6))) == [0, 1, 4, 9, 16, 25]
    assert list(in_parallel(slow_first, [])) == []


def test_an_exception_ends_it_and_drops_what_has_not_begun():
    begun = []
    gate = threading.Event()

    def work(item):
        begun.append(item)
        if item == 0:
            raise ValueError("no")
        gate.wait(0.2)

    with pytest.raises(ValueError, match="no"):
        list(in_parallel(work, range(1000)))
    assert len(begun) < 1000


def test_blas_has_one_thread_inside_and_as_many_as_before_after():
    np.linalg.eigh(np.eye(3))

    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert set(threads()) == {1}
    assert threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == all_threads().threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= available_cores() <= len(allowed)
