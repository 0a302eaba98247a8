"""Promises of memory that is kept between images."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from embedcache.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(40 << 20, np.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5

given_back = faults()
assert keep_freed_memory()
np.ones(40 << 20, np.uint8)
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks of glibc")
def test_a_freed_buffer_is_used_again_even_where_dask_has_told_the_allocator_to_give_it_back() -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100  # one for each huge page at least
    assert kept <= given_back // 10
