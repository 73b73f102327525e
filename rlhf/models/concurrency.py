"""Two pieces of work at once on one CPU, which write nothing that the other reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def run_concurrently(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """What both give, each computed by half of torch's threads; one after the other where torch has a single one.

    Gradient mode is as the caller has it; autocast is for each to enter.

    Raises:
        Exception: what either raised, once both have ended; the first's where both did.
    """
    threads = torch.get_num_threads()
    if threads < 2:
        return first(), second()
    pool, enabled = _pool(threads // 2), torch.is_grad_enabled()
    # OpenMP keeps a number by thread, which the workers have set; MKL keeps one for the process.
    torch.set_num_threads(threads // 2)
    try:
        one, other = pool.submit(_run, enabled, first), pool.submit(_run, enabled, second)
        wait([one])
        wait([other])
    finally:
        torch.set_num_threads(threads)
    return one.result(), other.result()


def _run(enabled: bool, work: Callable[[], A]) -> A:
    with torch.set_grad_enabled(enabled):
        return work()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Two threads of Python, each with so many of torch's."""
    return ThreadPoolExecutor(2, "at once", initializer=torch.set_num_threads, initargs=(threads,))
