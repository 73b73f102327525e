"""Becoming the ranks of one run: they are started here, or by torchrun or SLURM, meet, and end together.

Who starts them gives torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). Where nobody has,
`start_ranks` does, as processes of this machine: it hands them the config, passes requests to stop on to them, and
when one dies it ends the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
import torch.distributed as distributed
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]  # documented

from rlhf.config import RunConfig
from rlhf.config.build import build_config, config_to_mapping
from rlhf.distributed import count, rank
from rlhf.errors import one_line, reason
from rlhf.processes import ROOT, STOP_SIGNALS, TELL_AGAIN_SECONDS, RankFailed, how_it_died
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
    global _heard
    _heard = ""
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    cuda = config.hardware.device == "cuda"
    if cuda:
        torch.cuda.set_device(local_device())
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
        with _blaming(failures):
            yield
            distributed.barrier()  # rank 0 keeps the store up until all are through
    finally:
        over.set()
        distributed.destroy_process_group()


@contextlib.contextmanager
def _blaming(failures: PrefixStore) -> Iterator[None]:
    """What a rank dies of is told to the others; a lost connection is told as what the lost one died of."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, RankFailed):
            with contextlib.suppress(Exception):  # the store has gone with rank 0
                failures.compare_set(FAILURE, "", f"rank {rank()}: {one_line(error)}")
        raise


def blamed(error: BaseException) -> BaseException:
    """The error itself; where it is no more than a connection lost, what the other rank died of."""
    lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
    if count() == 1 or isinstance(error, RankFailed) or not isinstance(error, RuntimeError) or not lost:
        return error
    time.sleep(LOOK_SECONDS)  # for the watch to have looked once more
    return RankFailed(_heard or f"another of the {count()} ranks is gone (killed, or out of memory)")


_heard = ""
"""What another rank has said it died of."""


def _watch(failures: PrefixStore, over: threading.Event) -> None:
    """End this process where another rank has failed and this one hangs in a collective with it."""
    global _heard
    while not over.wait(LOOK_SECONDS / 4):
        try:
            if not failures.check([FAILURE]):
                continue
            _heard = failures.get(FAILURE).decode()
        except Exception:
            _heard = _heard or "rank 0 is gone (killed, or out of memory)"
        if not over.wait(GRACE_SECONDS):
            complain(f"another rank has failed, this one ends: {_heard}")
            os._exit(1)
        return


def local_device() -> int:
    """This rank's GPU; SLURM may show each task its own as the only one."""
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    result: Connection
    message: tuple[str, Any] | None = None
    died: float | None = None

    def look(self) -> None:
        if self.died is None and self.process.poll() is not None:
            self.died = time.monotonic()
        with contextlib.suppress(EOFError, OSError):
            if self.message is None and self.result.poll():
                self.message = self.result.recv()

    @property
    def gone(self) -> str | None:
        """How it ended, where it could not say so itself."""
        code = self.process.returncode
        return None if self.message is not None or code is None else how_it_died(code)


def start_ranks(config: RunConfig) -> dict[str, Any]:
    """hardware.ranks processes of this machine do the run; returns rank 0's summary.

    They stay in this process's group, so that what kills it kills them; should it be killed alone, they checkpoint.

    Raises:
        Exception: what the first rank that failed raised; RankFailed where one was killed.
    """
    size = config.hardware.ranks
    if config.hardware.device == "cuda" and torch.cuda.device_count() < size:
        found = torch.cuda.device_count()
        remedy = "use fewer ranks" if found else "use hardware=cpu"
        raise RankFailed(f"hardware.ranks: {size}, one GPU each, but this machine shows {found}; {remedy}")
    ranks: list[_Rank] = []
    try:
        port = _free_port()
        for number in range(size):
            ranks.append(_start(config, number, port))
        _supervise(ranks)
        return _result(ranks)
    finally:
        for one in ranks:
            one.process.kill()
            one.process.wait()
            if one.process.stdin is not None:
                with contextlib.suppress(OSError):
                    one.process.stdin.close()
            one.result.close()


def _start(config: RunConfig, number: int, port: int) -> _Rank:
    size = str(config.hardware.ranks)
    receiver, sender = Pipe(duplex=False)
    environment = {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # this machine's name need not resolve
    words = [sys.executable, "-c", f"from rlhf.ranks import be_rank; be_rank({sender.fileno()})"]
    # Inherited: what comes while python starts must not end it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, pass_fds=[sender.fileno()])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    sender.close()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died, and `_supervise` will see
        process.stdin.write(json.dumps(config_to_mapping(config)).encode() + b"\n")
        process.stdin.flush()
    return _Rank(number, process, receiver)


def _supervise(ranks: list[_Rank]) -> None:
    """Until all have ended: pass a request to stop on, and end what is left soon after the first death."""
    told = float("-inf")
    while any(one.died is None for one in ranks):
        waiting = [one.result for one in ranks if one.message is None and one.died is None]
        wait(waiting, 0.2) if waiting else time.sleep(0.05)
        for one in ranks:
            one.look()
        if stop_requested() and time.monotonic() - told > TELL_AGAIN_SECONDS:
            told = time.monotonic()
            for one in ranks:
                one.process.send_signal(signal.SIGTERM)
        deaths = [one.died for one in ranks if one.died is not None and one.process.returncode != 0]
        if deaths and time.monotonic() - min(deaths) > 2 * GRACE_SECONDS:
            return


def _result(ranks: list[_Rank]) -> dict[str, Any]:
    ended = sorted((one for one in ranks if one.died is not None), key=lambda one: one.died or 0.0)
    raised = [one.message[1] for one in ranks if one.message is not None and one.message[0] == "raised"]
    own = [error for error in raised if not isinstance(error, RankFailed)]
    if own:
        raise own[0]
    for one in ended:
        if one.gone:
            raise RankFailed(f"rank {one.number} of {len(ranks)} was {one.gone}")
    if raised:
        raise raised[0]
    assert ranks[0].message is not None
    return ranks[0].message[1]


def be_rank(result: int) -> None:
    """The whole life of a process that `start_ranks` started."""
    sender = Connection(result, readable=False)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # until the run listens, and after; the parent asks again
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    config = build_config(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_stop_without_parent, daemon=True, name="parent-watch").start()
    from rlhf.run import execute

    try:
        sender.send(("returned", execute(config)))
    except BaseException as error:
        complain(traceback.format_exc())
        sender.send(("raised", _portable(error)))
        sys.stderr.flush()
        os._exit(1)


def _stop_without_parent() -> None:
    while os.read(0, 1):  # until the parent closes its end
        pass
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TELL_AGAIN_SECONDS)


def _portable(error: BaseException) -> BaseException:
    """The error as it can be sent."""
    try:
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(one_line(error))


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
