"""The benchmarks of speed and memory: what they count and fit is right; that they run is a slow test."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf.models.loading import language_head
from tests.benchmarks import memory, scaling, startup
from tests.benchmarks.measuring import (
    Machine,
    Product,
    Shapes,
    Table,
    Times,
    backward,
    exponent,
    flops,
    forward,
    interleaved,
    linear_shapes,
    number,
    peak_bytes,
)
from tests.benchmarks.peer import need_trl
from tests.benchmarks.sampling import bytes_per_step
from tests.benchmarks.setups import MODELS, config_for, neox, never_ends, random_model, words_for
from tests.benchmarks.stages import Work, work_of

CPU = torch.device("cpu")
MODULES = ("iteration", "sampling", "updating", "memory", "scaling", "startup", "compiling", "products")


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"tests.benchmarks.{request.param}")


def test_options_have_defaults_and_help(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = module.parser().parse_args([])
    assert options.repeats >= 1 and options.threads == 2
    with pytest.raises(SystemExit) as left:
        module.main(["--help"])
    assert left.value.code == 0
    assert (module.__doc__ or "?").splitlines()[0] in capsys.readouterr().out


def test_products_of_a_one_layer_model() -> None:
    model: Any = random_model(neox(1, 8, 2, 32), torch.float32, CPU)
    blocks = linear_shapes(*model.base_model.layers)
    # Queries, keys and values; output; into the MLP and out of it.
    assert blocks == {(8, 24): 1, (8, 8): 1, (8, 32): 1, (32, 8): 1}
    numbers = 8 * 24 + 8 * 8 + 2 * 8 * 32
    assert flops(forward(blocks, rows=5)) == 2 * 5 * numbers
    assert flops(forward(blocks, 5, 3)) == 3 * 2 * 5 * numbers
    assert flops(backward(blocks, 5, weights=True)) == 2 * 2 * 5 * numbers
    assert flops(backward(blocks, 5, weights=False)) == 2 * 5 * numbers
    assert linear_shapes(model) - blocks == {(8, 32): 1}, "the language head"


@pytest.mark.parametrize(
    ("mode", "trunk", "heads_in_update"),
    [("all", 0, 3), ("last_k", 1, 2), ("lora", 0, 2)],
)
def test_work_of_the_stages(mode: str, trunk: int, heads_in_update: int) -> None:
    """Blocks of one 10 x 10 matrix, in the last one a tail of 10 x 20 beside it, a head of 10 x 100: 200, 400 and 2,000
    FLOPs a token."""
    block, tail, head, blocks = 200, 400, 2000, 2
    work = Work(
        trunk=Shapes({(10, 10): trunk}) if trunk else Shapes(),
        top=Shapes({(10, 10): blocks - trunk}),
        tail=Shapes({(10, 20): 1}),
        head=Shapes({(10, 100): 1}),
        mode=mode,
        responses=8,
        sampled_at_once=4,
        prompt=3,
        new=2,
        micro_batch=2,
        epochs=3,
    )
    top = blocks - trunk
    assert flops(work.sampling()) == 8 * (3 + 1) * blocks * block + 8 * 2 * (tail + head)
    assert flops(work.scoring()) == 8 * 6 * (blocks * block + tail)
    assert flops(work.measuring()) == 8 * 5 * (trunk + 3 * top) * block + 3 * 8 * 2 * tail + 2 * 8 * 2 * head
    trained = 2 if mode == "lora" else 3  # adapters need no gradient of the base's weights
    both = 5 * 2 * trained * top * block + 2 * 2 * trained * tail
    assert flops(work.update()) == 3 * 8 * (both + 2 * heads_in_update * head)


def test_the_tail_is_what_comes_after_attention() -> None:
    """Width 8, MLP 32, two of three blocks trained."""
    model = random_model(neox(3, 8, 2, 32), torch.float32, CPU)
    words = ("model=pythia_125m", "model.train.mode=last_k", "model.train.last_k=2")
    config = config_for(*words, algo="ppo", responses=4, prompt=3, new=2, minibatch=2)
    work = work_of(config, model, 3)
    assert work.trunk == {(8, 24): 1, (8, 8): 1, (8, 32): 1, (32, 8): 1}
    assert work.tail == {(8, 8): 1, (8, 32): 1, (32, 8): 1}
    assert work.top == {(8, 24): 2, (8, 8): 1, (8, 32): 1, (32, 8): 1}
    assert work.head == {(8, 32): 1}


def test_a_machine_adds_up_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    slowness = 2.0
    monkeypatch.setattr(Machine, "_measure", lambda self, product: slowness * product.rows / 1000)
    machine, products = Machine(CPU), [Product(2, 8, 8, 5), Product(3, 8, 8, 1, "weight")]
    machine.read(products)
    assert machine.seconds(products) == pytest.approx(0.026)
    slowness = 1.0
    machine.read(products)  # the best of two readings
    slowness = 3.0
    machine.read(products)
    assert machine.seconds(products) == pytest.approx(0.013) and max(machine.squares) == 3 * machine.squares[2]


def test_a_machine_measures_every_kind_of_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.measuring.ENOUGH_SECONDS", 1e-4)
    machine = Machine(CPU)
    monkeypatch.setattr(machine, "square", Product(64, 64, 64, 1))
    for kind, dtype in itertools.product(("forward", "input", "weight"), (None, torch.float64)):
        product = Product(4, 8, 16, 2, kind, 2, dtype)
        machine.read([product])
        assert 0 < machine.seconds([product]) < 1


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_exponent_of_a_power_law(power: float) -> None:
    sizes = [1, 2, 4, 8]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_exponent_is_by_least_squares() -> None:
    # log2: (0, 0), (1, 0), (2, 3): slope 1.5
    assert exponent([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


def test_alternatives_take_turns_after_a_warm_up() -> None:
    called: list[str] = []
    found = interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2, CPU)
    assert called == ["a", "b", "a", "b", "a", "b"]
    assert [len(times.seconds) for times in found.values()] == [2, 2]
    assert Times([3.0, 1.0, 2.5]).least == 1.0 and Times([3.0, 1.0, 2.5]).median == 2.5


def test_needed_memory() -> None:
    found = memory.needed(
        frozen_bytes=1000,
        trained_parameters=10,
        blocks=3,
        key_width=4,
        cached_rows=5,
        cached_bytes=2,
        rows=7,
        positions=6,
        new=2,
        trunk_width=8,
        vocabulary=9,
    )
    assert found == memory.Needed(
        frozen=1000,
        trained=160,  # weight, gradient, two moments
        cache=2 * 3 * 4 * 5 * 6 * 2,  # keys and values
        trunk=4 * 7 * 6 * 8,
        logits=4 * 7 * 2 * 9,
    )
    assert found.total == 1000 + 160 + 1440 + 1344 + 504


def test_a_chunk_of_logits_is_all_that_is_needed_of_many() -> None:
    sizes = dict.fromkeys(("blocks", "key_width", "cached_rows", "cached_bytes", "positions", "trunk_width"), 0)
    found = memory.needed(frozen_bytes=0, trained_parameters=0, rows=64, new=128, vocabulary=50_000, **sizes)
    assert found.total == found.logits == 64 * 2**20


def test_bytes_of_a_sampled_token() -> None:
    model = random_model(neox(1, 8, 2, 32), torch.float32, CPU)
    read = sum(one.numel() for one in model.parameters()) - 32 * 8  # embeddings are looked up
    cache = 2 * 8 * 5 * (3 + 2)  # keys and values of 5 rows, 4 tokens sampled after 3
    assert bytes_per_step(model, batch=5, prompt=3, new=4) == 4 * (read + cache)


def test_responses_never_end() -> None:
    tokenizer = words_for(32)
    model = random_model(neox(1, 8, 2, 32), torch.float32, CPU)
    before = language_head(model).weight
    never_ends(model, tokenizer)
    with torch.no_grad():
        chances = model(torch.tensor([[5, 6, 7]])).logits.softmax(-1)
    assert len(tokenizer) == 32 and language_head(model).weight is before
    assert bool((chances[..., tokenizer.all_special_ids] == 0).all())
    assert bool((chances[..., 3:] > 0).all())


def test_shapes_are_those_of_the_configs() -> None:
    with torch.device("meta"):
        for name, millions in {"smollm2_135m": 134.5, "pythia_1b": 1012, "llama_7b": 6738}.items():
            model = random_model(MODELS[name](0), torch.bfloat16, torch.device("meta"))
            assert sum(one.numel() for one in model.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_iterations_are_read_from_metrics() -> None:
    def row(iteration: int, seconds: float) -> str:
        parts = {f"perf/{part}_seconds": seconds for part in scaling.PARTS}
        return json.dumps({"iteration": iteration, **(parts if iteration else {})})

    text = "\n".join([row(0, 0.0), row(1, 100.0), row(2, 1.0), row(3, 2.0), row(4, 4.0)])
    assert scaling.seconds_of_iterations(text) == 6.0


def test_trl_that_is_missing_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.experimental.ppo", None)
    with pytest.raises(SystemExit) as left:
        need_trl()
    assert "pip install -e '.[benchmarks]'" in str(left.value.code) and "\n" not in str(left.value.code)


def test_this_process_has_used_memory_and_time() -> None:
    assert peak_bytes(CPU) > 50 * 2**20
    if sys.platform == "linux":
        assert startup.cpu_seconds(os.getpid()) > 0


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Table("what", "seconds", "share", width=8).row("all", 1234.5, "7%")
    title, row = capsys.readouterr().out.splitlines()
    assert len(title) == len(row) and row.split() == ["all", "1,234", "7%"]
    assert [number(one) for one in (0.0, 0.12345, 1.2345, 123.45)] == ["0", "0.123", "1.23", "123"]


@pytest.mark.slow
@pytest.mark.usefixtures("torchs_switches")
def test_iteration_and_sampling_run(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--repeats", "1", "--threads", "1"]
    iteration, sampling = (importlib.import_module(f"tests.benchmarks.{name}") for name in ("iteration", "sampling"))
    iteration.main([*small, "--no-trl", "--responses", "8", "--minibatch", "4", "--new", "4", "--profile"])
    told = capsys.readouterr().out
    for stage in ("whole", *iteration.STAGES):
        assert told.count(f"\n{stage} ") == 2, "all parameters and the last two blocks"
    assert "aten::" in told
    sampling.main([*small, "--batch", "4", "--new", "4"])
    told = capsys.readouterr().out
    assert all(f"\n{way} " in told for way in ("ours, fast", "ours, plain", "generate", "generate, static cache"))


SMALL = {
    "updating": "--responses 4 --minibatch 4 --prompt 4 --new 4",
    "memory": "--model tiny --device cpu --responses 4 --minibatch 4 --prompt 4 --new 4",
    "scaling": "--of responses ranks --points 2 --iterations 2",
    "startup": "--overrides debug=one_step tracking=none",
    "compiling": "--rows 2",
    "products": "--rows 4 8 --inputs 32 --outputs 32 --weights 2",
}


@pytest.mark.slow
@pytest.mark.usefixtures("torchs_switches")
@pytest.mark.parametrize("name", SMALL)
def test_the_others_run(name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda call: call)  # which takes a minute
    importlib.import_module(f"tests.benchmarks.{name}").main([*SMALL[name].split(), "--repeats", "1", "--threads", "1"])
    told = capfd.readouterr().out
    rows = {
        "updating": ("all", "last_k=2", "lora"),
        "memory": ("tiny, apa", "tiny, ppo"),
        "scaling": ("responses", "ranks"),
        "startup": ("--cfg job", "first metrics row, warm cache"),
        "compiling": ("as it is", "compiled"),
        "products": ("4 rows", "8 rows"),
    }
    assert all(f"\n{row} " in told for row in rows[name]) and "failed" not in told
    assert len(told.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.usefixtures("torchs_switches")
def test_trl_runs_beside_ours_and_takes_as_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    steps = Counter[int]()
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: steps.update([id(optimizer)]))
    iteration = importlib.import_module("tests.benchmarks.iteration")
    small = "--train all --minibatch 4 --responses 8 --prompt 4 --new 4 --epochs 3 --repeats 1 --threads 1"
    try:
        iteration.main(small.split())
    finally:
        hook.remove()
    told = capsys.readouterr().out
    assert "\nours " in told and "\nTRL " in told
    each = 3 * 8 // 4
    # Two iterations of TRL's, and of ours one before them and one after each.
    assert sorted(steps.values()) == [2 * each, 3 * each]
