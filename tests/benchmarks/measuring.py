"""What the benchmarks share: options, clocks, the machine's own rates, counts of arithmetic, tables.

Arithmetic is counted in matrix products of linear layers alone, where their output is wanted: 2 x parameters x tokens
for a forward pass, three times that where weights are trained. Attention's own products and everything by element are
left out, so that a share of the machine's rate is, if anything, too low.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from rlhf.precision import without_cudnn_attention
from rlhf.random import compute_the_same_again

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
ENOUGH_SECONDS = 0.05
"""A product is repeated that long for each of a few readings of its rate."""
COLD_BYTES = 256 * 2**20
"""Of weights that a reading goes through in turn, at most: what does not fit into a cache is not read from one."""

Shapes = Counter[tuple[int, int]]
"""How many matrices of (inputs, outputs) there are."""


class Product(NamedTuple):
    """`rows` tokens times a matrix of (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int
    kind: str = "forward"
    """forward; input or weight: the two gradients of the backward pass."""
    matrices: int = 1
    """Distinct matrices that take turns."""
    dtype: torch.dtype | None = None
    """None: what the machine is asked about."""


Products = Counter[Product]


def linear_shapes(*modules: nn.Module) -> Shapes:
    """Every linear layer below, with or without an adapter around it; embeddings and norms are no products."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))
    return Counter((layer.in_features, layer.out_features) for layer in layers)


def passes(shapes: Shapes, rows: int, times: int, dtype: torch.dtype | None = None, kinds: str = "forward") -> Products:
    """The products of `times` passes of these kinds, which spaces separate."""
    return Counter(
        {
            Product(rows, *shape, kind, count, dtype): count * times
            for shape, count in shapes.items()
            for kind in kinds.split()
        }
    )


def flops(products: Products) -> int:
    return sum(2 * one.rows * one.inputs * one.outputs * times for one, times in products.items())


class Machine:
    """Rates of this machine's matrix products, in the best of several readings.

    Read before and after what they are compared with: other work on the machine may have ended by then.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        side = 8192 if device.type == "cuda" else 2048
        self.square = Product(side, side, side)
        self.squares: list[float] = []
        """FLOP/s of the large square product in each reading."""
        self._least: dict[Product, float] = {}

    def read(self, products: Iterable[Product]) -> None:
        """One more reading of each product, and of a large square."""
        self.squares.append(flops(Counter([self.square])) / self._measure(self.square))
        for product in set(products):
            self._least[product] = min(self._measure(product), self._least.get(product, math.inf))

    def seconds(self, products: Products) -> float:
        """What products that have been read would take, one behind the other and nothing else."""
        return sum(times * self._least[one] for one, times in products.items())

    def _measure(self, product: Product) -> float:
        rows, inputs, outputs, kind, matrices, dtype = product
        dtype = dtype or self.dtype

        def made(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device).to(dtype)

        if kind == "weight":
            return _least_of([(made(rows, outputs).t(), made(rows, inputs))], self.device)
        turns = max(1, min(matrices, COLD_BYTES // (inputs * outputs * dtype.itemsize)))
        weights = [made(outputs, inputs) for _ in range(turns)]
        if kind == "input":
            left = made(rows, outputs)
            return _least_of([(left, weight) for weight in weights], self.device)
        left = made(rows, inputs)
        least = _least_of([(left, weight.t()) for weight in weights], self.device)
        if self.device.type == "cpu":  # few rows: rlhf/models/layers.py
            least = min(least, _least_of([(weight, left.t()) for weight in weights], self.device))
        return least


def _least_of(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Seconds of a product, the pairs taking turns."""
    out = torch.mm(*pairs[0])
    return least_seconds(lambda i: torch.mm(*pairs[i % len(pairs)], out=out), device)


def least_seconds(call: Callable[[int], object], device: torch.device, readings: int = 3) -> float:
    """Seconds of one call, the least of a few readings of many calls."""
    for _ in range(2):
        call(0)
    count = 1
    while (seconds := _seconds_of(call, count, device)) < ENOUGH_SECONDS:
        count = max(2 * count, math.ceil(count * 1.2 * ENOUGH_SECONDS / max(seconds, 1e-6)))
    return min(seconds, *(_seconds_of(call, count, device) for _ in range(readings))) / count


def _seconds_of(call: Callable[[int], object], count: int, device: torch.device) -> float:
    finish(device)
    began = time.perf_counter()
    for i in range(count):
        call(i)
    finish(device)
    return time.perf_counter() - began


def finish(device: torch.device) -> None:
    """Wait for what a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of A B A B ... after one call of each: whatever else the machine does falls on all alike."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(_seconds_of(lambda _, call=call: call(), 1, device))
    return taken


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    size = 4 * 2**30 if device.type == "cuda" else 512 * 2**20
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / least_seconds(lambda _: target.copy_(source), device)


def peak_bytes(device: torch.device, who: int = resource.RUSAGE_SELF) -> int:
    """Of tensors on a GPU; otherwise of this process, or of the largest of its children."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a size^b, by least squares on logarithms."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


@contextmanager
def watching_collections() -> Iterator[Callable[[], float]]:
    """Gives what tells, and forgets, the seconds that Python's garbage collector took."""
    began, seconds = 0.0, 0.0

    def watch(phase: str, _: dict[str, int]) -> None:
        nonlocal began, seconds
        if phase == "start":
            began = time.perf_counter()
        else:
            seconds += time.perf_counter() - began

    def reset() -> float:
        nonlocal seconds
        so_far, seconds = seconds, 0.0
        return so_far

    gc.callbacks.append(watch)
    try:
        yield reset
    finally:
        gc.callbacks.remove(watch)


@contextmanager
def as_runs_do(device: torch.device, *, deterministic: bool = True) -> Iterator[None]:
    """Our runs on a CPU compute deterministically, and on a GPU without cuDNN's attention (rlhf/run.py), which others
    are not made to pay for."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    compute_the_same_again(deterministic and device.type == "cpu")
    without_cudnn_attention()
    try:
        yield
    finally:
        compute_the_same_again(False)
        torch.backends.cuda.enable_cudnn_sdp(before)


def parser_of(description: str | None, *, repeats: int, **sizes: int | None) -> argparse.ArgumentParser:
    """The options that all of them take, and those of the sizes that one measures: responses, prompt, new ..."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="of each alternative, after a warm-up")
    parser.add_argument("--threads", type=int, default=2, help="of torch, the same for all")
    meaning = {
        "layers": "fewer blocks than the model has; random weights",
        "prompt": "tokens",
        "new": "tokens of each response",
        "minibatch": "responses of an optimizer step",
    }
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=meaning.get(name))
    return parser


def begin(options: argparse.Namespace, device: torch.device = CPU) -> None:
    """Set the threads; print what the figures depend on. Leaves with a line where the device is not there."""
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: give --device cpu, and --layers 2 where the model is large")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {chip}, load average {load}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, python {platform.python_version()}\n")


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


class Table:
    """Rows as they come; the first column is text, the others are as wide as their titles.

    Where the variable BENCHMARK_ROWS names a file, each row is written there too, a JSON object a line.
    """

    def __init__(self, first: str, *others: str, width: int = 34) -> None:
        self.widths = [width, *(max(9, len(title) + 2) for title in others)]
        self.titles = others
        self._print(first, others)

    def row(self, first: str, *others: str | float | None) -> None:
        """Numbers with three or four figures; nothing for None."""
        self._print(first, ["" if one is None else one if isinstance(one, str) else number(one) for one in others])
        if file := os.environ.get("BENCHMARK_ROWS"):
            with Path(file).open("a") as rows:
                rows.write(json.dumps({"row": first, **dict(zip(self.titles, others, strict=False))}) + "\n")

    def _print(self, first: str, texts: Sequence[str]) -> None:
        cells = "".join(text.rjust(w) for text, w in zip(texts, self.widths[1:], strict=False))
        print(first.ljust(self.widths[0]) + cells, flush=True)


def number(value: float) -> str:
    digits = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))) - 1)
    return f"{value:,.{min(digits, 4)}f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%"
