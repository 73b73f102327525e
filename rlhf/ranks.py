"""Becoming the ranks of one run: they are started here, or by torchrun or SLURM, meet, and end together.

Who starts them gives torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Where nobody has,
`start_ranks` does, as processes of this machine, by torch.multiprocessing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from rlhf.config import RunConfig
from rlhf.distributed import count
from rlhf.errors import one_line, reason
from rlhf.files import write_whole
from rlhf.processes import (
    TELL_AGAIN_SECONDS,
    RankFailed,
    how_it_died,
    ignore_until_the_run_listens,
    signals_held,
    stop_without_parent,
)
from rlhf.terminal import complain
from rlhf.waiting import stop_requested

MEET_SECONDS = 600.0
"""All ranks have started by then."""
STUCK = timedelta(days=1)
"""After which a collective gives up: a rank may wait for hours while another process makes an input."""
GRACE_SECONDS = 15.0
"""From the end of one rank to that of the others, in which rank 0 says in its summary what happened."""
LOOK_SECONDS = 2.0
FAILURE = "failure"
"""Key of the store under which the first rank that fails says why."""


@contextlib.contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """This process as the rank that the environment names.

    Raises:
        RankFailed: the others did not come; or, out of the body, another rank has failed.
    """
    global _failure_elsewhere
    _failure_elsewhere = ""
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    cuda = config.hardware.device == "cuda"
    if cuda:
        # SLURM may show each task a GPU of its own as the only one.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
    hosts = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has one up already
    try:
        server = TCPStore(*where, size, hosts, timedelta(seconds=MEET_SECONDS))
        looking = TCPStore(*where, None, False, timedelta(seconds=MEET_SECONDS))
    except RuntimeError as error:
        raise RankFailed(f"rank {number} of {size} met nobody at {where[0]}:{where[1]} ({reason(error)})") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore(f"group {attempt}", server),
        rank=number,
        world_size=size,
        timeout=STUCK,
    )
    failures = PrefixStore(f"failures {attempt}", looking)
    over = threading.Event()
    threading.Thread(target=_watch, args=(failures, over), daemon=True, name="rank-watch").start()
    try:
        yield
        distributed.barrier()  # rank 0 keeps the store up until all are through
    except BaseException as error:
        if not isinstance(error, RankFailed):
            with contextlib.suppress(Exception):  # the store has gone with rank 0
                failures.compare_set(FAILURE, "", f"rank {number}: {one_line(error)}")
        raise
    finally:
        over.set()
        distributed.destroy_process_group()


def root_failure(error: BaseException) -> BaseException:
    """The error itself; where it is no more than a connection lost, what the other rank died of."""
    lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
    if count() == 1 or isinstance(error, RankFailed) or not isinstance(error, RuntimeError) or not lost:
        return error
    time.sleep(LOOK_SECONDS)  # for the watch to have looked once more
    return RankFailed(_failure_elsewhere or f"another of the {count()} ranks is gone (killed, or out of memory)")


_failure_elsewhere = ""
"""What another rank has said it died of."""


def _watch(failures: PrefixStore, over: threading.Event) -> None:
    """End this process where another rank has failed and this one hangs in a collective with it."""
    global _failure_elsewhere
    while not over.wait(LOOK_SECONDS / 4):
        try:
            if not failures.check([FAILURE]):
                continue
            _failure_elsewhere = failures.get(FAILURE).decode()
        except Exception:
            _failure_elsewhere = _failure_elsewhere or "rank 0 is gone (killed, or out of memory)"
        if not over.wait(GRACE_SECONDS):
            complain(f"another rank has failed, this one ends: {_failure_elsewhere}")
            os._exit(1)
        return


def start_ranks(config: RunConfig, execute: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    """hardware.ranks processes of this machine do the run; returns rank 0's summary.

    They stay in this process's group, so that what kills it kills them; should it be killed alone, they checkpoint.

    Args:
        execute: what each of them calls; a function of a module.

    Raises:
        Exception: what the first rank that failed raised; RankFailed where one was killed.
    """
    size = config.hardware.ranks
    if config.hardware.device == "cuda" and torch.cuda.device_count() < size:
        there = torch.cuda.device_count()
        remedy = "use fewer ranks" if there else "use hardware=cpu"
        raise RankFailed(f"hardware.ranks: {size}, one GPU each, but this machine shows {there}; {remedy}")
    with tempfile.TemporaryDirectory(prefix="ranks-") as results:
        variables = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            variables["MASTER_PORT"] = str(listening.getsockname()[1])
        if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
            variables["GLOO_SOCKET_IFNAME"] = "lo"  # this machine's name need not resolve
        resource_tracker.ensure_running()
        with signals_held():
            context = spawn(_be_rank, (execute, config, variables, results), nprocs=size, join=False)
        assert context is not None
        processes: list[Any] = list(context.processes)
        first_dead, asked = 0, float("-inf")
        try:
            while not context.join(0.2, grace_period=2 * GRACE_SECONDS):
                if stop_requested() and time.monotonic() - asked > TELL_AGAIN_SECONDS:
                    asked = time.monotonic()
                    for process in processes:
                        process.terminate()  # to be asked is to checkpoint and stop
        except (ProcessExitedException, ProcessRaisedException) as died:
            first_dead = died.error_index
        finally:
            for process in processes:
                process.kill()
                process.join()
        return _result(Path(results), [process.exitcode for process in processes], first_dead)


def _result(results: Path, exit_codes: list[int | None], first_dead: int) -> dict[str, Any]:
    size = len(exit_codes)
    ended = {n: pickle.loads(file.read_bytes()) for n in range(size) if (file := results / str(n)).is_file()}
    raised = [error for error in ended.values() if isinstance(error, BaseException)]
    for error in raised:
        if not isinstance(error, RankFailed):
            raise error
    for number in sorted(range(size), key=lambda number: number != first_dead):
        if number not in ended:
            raise RankFailed(f"rank {number} of {size} was {how_it_died(exit_codes[number] or 0)}")
    if raised:
        raise raised[0]
    return ended[0]


def _be_rank(
    number: int,
    execute: Callable[[RunConfig], dict[str, Any]],
    config: RunConfig,
    variables: Mapping[str, str],
    results: str,
) -> None:
    """The whole life of a process that `start_ranks` started; leaves a summary or an exception in `results`."""
    ignore_until_the_run_listens()
    stop_without_parent()
    os.environ.update({**variables, "RANK": str(number), "LOCAL_RANK": str(number)})
    try:
        result: Any = execute(config)
    except BaseException as error:
        complain(traceback.format_exc())
        result = error
        try:
            same = str(pickle.loads(pickle.dumps(error))) == str(error)
        except Exception:
            same = False
        if not same:  # it cannot be sent as it is
            result = RuntimeError(one_line(error))
    write_whole(Path(results) / str(number), pickle.dumps(result))
    if isinstance(result, BaseException):
        sys.stderr.flush()
        os._exit(1)
