"""What the benchmarks of speed and memory share: clocks, the machine's own rates, counts of arithmetic, tables.

Arithmetic is counted in matrix products of linear layers alone, where their output is wanted: 2 x parameters x tokens
for a forward pass, three times that where weights are trained. Attention's own products and everything by element are
left out, so that a share of the machine's rate is, if anything, too low.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
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
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.utils import logging

from rlhf.precision import without_cudnn_attention
from rlhf.random import compute_the_same_again

ENOUGH_SECONDS = 0.05
"""A product is repeated that long for each of a few readings of its rate."""
COLD_BYTES = 256 * 2**20
"""Of weights that a reading goes through in turn, at most: what does not fit into a cache is not read from one."""

Shapes = Counter[tuple[int, int]]
"""How many matrices of (inputs, outputs) there are."""


@dataclass(frozen=True)
class Times:
    seconds: list[float]

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Product:
    """`times` products of `rows` tokens with a matrix of (inputs, outputs)."""

    rows: int
    inputs: int
    outputs: int
    times: int
    kind: str = "forward"
    """forward; input or weight: the two gradients of the backward pass."""
    matrices: int = 1
    """Distinct matrices that take turns."""
    dtype: torch.dtype | None = None
    """None: what the machine is asked about."""

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs * self.times


def linear_shapes(*modules: nn.Module) -> Shapes:
    """Every linear layer below, with or without an adapter around it; embeddings and norms are no products."""
    return Counter(
        (layer.in_features, layer.out_features)
        for module in modules
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
    )


def forward(shapes: Shapes, rows: int, times: int = 1, dtype: torch.dtype | None = None) -> list[Product]:
    return [Product(rows, *shape, count * times, matrices=count, dtype=dtype) for shape, count in shapes.items()]


def backward(
    shapes: Shapes, rows: int, times: int = 1, dtype: torch.dtype | None = None, *, weights: bool
) -> list[Product]:
    """Gradients of the inputs and, where they are trained, of the weights."""
    kinds = ("input", "weight") if weights else ("input",)
    return [
        Product(rows, *shape, count * times, kind, count, dtype) for shape, count in shapes.items() for kind in kinds
    ]


def flops(products: Iterable[Product]) -> int:
    return sum(product.flops for product in products)


class Machine:
    """Rates of this machine's matrix products, in the best of several readings.

    Read before and after what they are compared with: other work on the machine may be gone by then.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = device, dtype
        side = 8192 if device.type == "cuda" else 2048
        self.square = Product(side, side, side, 1)
        self.squares: list[float] = []
        """FLOP/s of the large square product in each reading."""
        self._least: dict[Product, float] = {}

    def read(self, products: Iterable[Product]) -> None:
        """One more reading of each shape, and of a large square."""
        self.squares.append(self.square.flops / self._measure(self.square))
        for product in {dataclasses.replace(one, times=1) for one in products}:
            self._least[product] = min(self._measure(product), self._least.get(product, math.inf))

    def seconds(self, products: Iterable[Product]) -> float:
        """What products that have been read would take, one behind the other and nothing else."""
        return sum(one.times * self._least[dataclasses.replace(one, times=1)] for one in products)

    def _measure(self, product: Product) -> float:
        rows, inputs, outputs = product.rows, product.inputs, product.outputs
        dtype = product.dtype or self.dtype

        def made(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device).to(dtype)

        turns = max(1, min(product.matrices, COLD_BYTES // (inputs * outputs * dtype.itemsize)))
        if product.kind == "weight":
            pairs = [(made(rows, outputs).t(), made(rows, inputs))]
        elif product.kind == "input":
            left = made(rows, outputs)
            pairs = [(left, made(outputs, inputs)) for _ in range(turns)]
        else:
            left = made(rows, inputs)
            pairs = [(left, made(outputs, inputs).t()) for _ in range(turns)]
        least = _least_of(pairs, self.device)
        if product.kind == "forward" and self.device.type == "cpu":  # few rows: rlhf/models/layers.py
            least = min(least, _least_of([(right.t(), left.t()) for left, right in pairs], self.device))
        return least


def _least_of(pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Seconds of a product, the pairs taking turns."""
    out = torch.mm(*pairs[0])
    return least_seconds(lambda i: torch.mm(*pairs[i % len(pairs)], out=out), device)


def least_seconds(call: Callable[[int], object], device: torch.device, readings: int = 3) -> float:
    """Seconds of one call, the least of a few readings of many calls."""
    count, found = 1, math.inf
    for _ in range(2):
        call(0)
    while True:
        seconds = _seconds_of(call, count, device)
        if seconds >= ENOUGH_SECONDS:
            break
        count = max(2 * count, math.ceil(count * 1.2 * ENOUGH_SECONDS / max(seconds, 1e-6)))
    for _ in range(readings):
        found = min(found, seconds / count)
        seconds = _seconds_of(call, count, device)
    return min(found, seconds / count)


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


def timed(call: Callable[[], object], device: torch.device) -> float:
    return _seconds_of(lambda _: call(), 1, device)


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, Times]:
    """A B A B ..., so that whatever else the machine does falls on all alike."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            found[name].append(timed(call, device))
    return {name: Times(seconds) for name, seconds in found.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    size = 4 * 2**30 if device.type == "cuda" else 512 * 2**20
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / least_seconds(lambda _: target.copy_(source), device)


def peak_bytes(device: torch.device) -> int:
    """Of tensors on a GPU; of the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a size^b, by least squares on logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((one - x) * (other - y) for one, other in zip(xs, ys, strict=True)) / sum((one - x) ** 2 for one in xs)


@dataclass
class Collections:
    """Seconds that Python's garbage collector took since `reset`."""

    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds += time.perf_counter() - self._began

    def reset(self) -> float:
        """The seconds so far, forgotten."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@contextmanager
def watching_collections() -> Iterator[Collections]:
    found = Collections()
    gc.callbacks.append(found)
    try:
        yield found
    finally:
        gc.callbacks.remove(found)


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


def add_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """What all of them take."""
    parser.add_argument("--repeats", type=int, default=repeats, help="of each alternative, after a warm-up")
    parser.add_argument("--threads", type=int, default=2, help="of torch, the same for all")


def begin(options: argparse.Namespace, device: torch.device) -> None:
    """Set the threads; print what the figures depend on. Leaves with a line where the device is not there."""
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no CUDA device here; give --device cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {chip}, load average {load}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, python {platform.python_version()}\n")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


class Table:
    """Rows as they come; the first column is text, the others are as wide as their titles."""

    def __init__(self, first: str, *others: str, width: int = 34) -> None:
        self.widths = [width, *(max(9, len(title) + 2) for title in others)]
        print(first.ljust(width) + "".join(title.rjust(w) for title, w in zip(others, self.widths[1:], strict=True)))

    def row(self, first: str, *others: str | float | None) -> None:
        """Numbers with three or four figures; nothing for None."""
        texts = ["" if one is None else one if isinstance(one, str) else number(one) for one in others]
        cells = "".join(text.rjust(w) for text, w in zip(texts, self.widths[1:], strict=False))
        print(first.ljust(self.widths[0]) + cells, flush=True)


def number(value: float) -> str:
    digits = 0 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))) - 1)
    return f"{value:,.{min(digits, 4)}f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%"
