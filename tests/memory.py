"""Asserts a limit on the memory that Python allocates."""

import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def allocating_less_than(peak_bytes_max: int) -> Generator[None]:
    """Asserts that what the block allocates and holds at a time is less than this."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < peak_bytes_max
