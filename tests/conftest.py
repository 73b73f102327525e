"""One thread for every test, since two torch processes with the default number starve each other; usual signals;
no table in the user's cache."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rlhf.config import RunConfig

for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}.items():
    os.environ.setdefault(_name, _value)  # before torch is imported; what tests start inherits it

# Tables that data sets are converted to; before `datasets` is imported, which reads it once.
_tables = tempfile.TemporaryDirectory(prefix="rlhf-tests-datasets-")
os.environ["HF_DATASETS_CACHE"] = _tables.name

# People's texts, which are not the project's to ship: what needs them is no test where they are not beside it.
_pairs = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-pairs.jsonl.gz"
collect_ignore = [] if _pairs.exists() else ["test_real_pairs.py"]

# nohup, and shells that start something in the background, ignore these; drivers that tests interrupt would inherit it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_wandb_service_of_another_file() -> None:
    """W&B leaves its process's address in the environment, where what tests start would look for it in vain."""
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(autouse=True)
def families_that_fit(request: pytest.FixtureRequest) -> None:
    """A test of one architecture is skipped where our layers do not fit it; tests/models/test_network.py says why."""
    name = getattr(getattr(request.node, "callspec", None), "params", {}).get("architecture")
    if name is not None:
        from tests.helpers import base_class, skip_where_moved

        skip_where_moved(base_class(name))


@pytest.fixture
def torchs_switches() -> Iterator[None]:
    """A run sets them for its process, which here is everybody's."""
    import torch  # no test that needs no torch pays for it

    threads, cudnn = torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of SFT policies and reward models, made once for all files; a test that damages or counts them has another."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def default_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the embedded default's inputs at full size, which take two minutes to make."""
    return tmp_path_factory.mktemp("default_cache")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[..., RunConfig]:
    """A finished tiny run with these settings, made on first use."""
    from rlhf.run import execute
    from tests.test_run import tiny

    output, made = tmp_path_factory.mktemp("never stopped"), {}

    def run(algo: str = "apa", *overrides: str) -> RunConfig:
        key = (algo, *overrides)
        if key not in made:
            made[key] = tiny(output, cache, *key)
            assert execute(made[key])["status"] == "finished"
        return made[key]

    return run


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch has two threads, as with hardware.threads=2."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fallback_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is measured and trained by its model's own forward pass, as an architecture that is not known."""
    from rlhf.models import network

    monkeypatch.setattr(network, "misfit", lambda _: "asked for")
