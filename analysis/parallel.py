"""Work on hundreds of runs, shared by the cores: reading and tracing them is most of a large report's time."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Below this the workers' start, half a second, costs more than they save.
WORTH_SHARING = 200


def mapped(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], by worker processes where there are many items.

    Args:
        function: of a module, since workers import it; what it takes and returns is pickled.
    """
    cores = len(os.sched_getaffinity(0))
    if len(items) < WORTH_SHARING or cores < 2:
        return [function(item) for item in items]
    # No fork: the caller may have threads (W&B's, a live table's).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores, 8), mp_context=context) as pool:
        with _main_hidden():  # workers are started when work is handed in
            results = pool.map(function, items, chunksize=-(-len(items) // (4 * cores)))
        return list(results)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Workers need nothing of the program that runs, which may be typed in, or do its work on being imported."""
    main = sys.modules["__main__"]
    before = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__ = None
    main.__file__ = None
    try:
        yield
    finally:
        for name in ("__spec__", "__file__"):
            if name in before:
                setattr(main, name, before[name])
            else:
                delattr(main, name)
