"""A real SLURM on this machine for the tests beside this: some nodes with made-up CPUs and GPUs, on 127.0.0.1.

    with Cluster() as cluster:
        job = cluster.run("sbatch", "--parsable", "--wrap", "hostname")

Everything it writes is in one folder under /tmp, every process it starts is gone at the end, also where whoever started
it is killed, and nothing in /etc, /run or systemd takes part: it runs as root and as an ordinary user, also several
side by side.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.slurm.accounting import ACCOUNTS, NO_ACCOUNTING, accounting_lines, make_database
from tests.slurm.configuration import free_ports, user, write_configuration
from tests.slurm.processes import kill, processes_of
from tests.slurm.watcher import start_watcher

T = TypeVar("T")
Address = int | Path

_PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "slurm-client": "sinfo", "munge": "munged"}
_ACCOUNTING_PROGRAMS = {"slurmdbd": "slurmdbd", "mariadb-server-core": "mariadbd"}
_CLIENT_PREFIXES = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
_CONTROLLER = {"slurmctld", "slurmscriptd"}
_NODE = {"slurmd", "slurmstepd"}


def missing_packages(accounting: bool = False, path: str | None = None) -> list[str]:
    """The Debian packages to install before a cluster can start here; empty where it can."""
    programs = _PROGRAMS | (_ACCOUNTING_PROGRAMS if accounting else {})
    return [package for package, program in programs.items() if _program(program, path) is None]


def _program(name: str, path: str | None = None) -> str | None:
    """Where a program is; an ordinary user's PATH has no /usr/sbin."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin" if path is None else path)


class Cluster:
    """A running SLURM between `with` and its end.

    Partitions: high preempts main (the default): a job gets the signal it asked for with --signal, else SIGTERM, and is
    requeued after ten seconds of grace; one that ends within them is not. Nodes are called n1, n2, ... Without
    accounting sacct fails, as on a site that keeps none.
    """

    folder: Path
    env: dict[str, str]
    """What a client needs: the caller's environment without that of an enclosing job, and SLURM_CONF."""

    def __init__(self, accounting: bool = False, nodes: int = 2, cpus: int = 8, gpus: int = 2) -> None:
        self.accounting = accounting
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self._cpus = cpus
        self._gpus = gpus
        self._commands: dict[str, list[str]] = {}
        self._addresses: dict[str, Address] = {}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: socket paths end at 108 bytes
        self.folder.chmod(0o755)
        outside = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
        self._watcher = start_watcher(self.folder, outside)
        try:
            self._configure()
            for name in self._commands:
                self._start(name)
                if name == "slurmdbd":
                    for words in ACCOUNTS:
                        self.run("sacctmgr", "--immediate", *words.format(user=user()).split())
            self.wait_until(self._all_idle)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of the cluster, jobs and their descendants too, and remove its folder."""
        deadline = time.monotonic() + 20
        while left := processes_of(self._conf):
            if time.monotonic() > deadline:
                raise RuntimeError(f"these processes of {self.folder} do not end: {left}")
            # The daemons first: nothing new starts while the rest is looked for.
            kill([daemon.pid for daemon in self._daemons.values() if daemon.poll() is None])
            kill(left)
            time.sleep(0.02)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait(timeout=10)
        shutil.rmtree(self.folder)
        self._watcher.communicate(timeout=30)

    def restore(self) -> None:
        """Bring the cluster back to idle after a test: all daemons run, no job and no process of one is left."""
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                self._start(name)
        # What submits goes before the jobs are cancelled. A killed slurmstepd would be missed for minutes.
        kill(pid for pid, name in self._others().items() if name not in _NODE)
        self.wait_until(self._no_job)
        kill(self._others())
        if not self._all_idle():
            self.wait_until(self._resumed)

    @property
    def _conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    def _configure(self) -> None:
        """Write the files, and settle how each daemon is started and where it answers, in the order of starting."""
        first = free_ports()
        slurmctld_port, slurmdbd_port, mariadb_port = first, first + 1, first + 2
        node_ports = {name: first + 3 + index for index, name in enumerate(self.names)}
        write_configuration(
            self.folder,
            slurmctld_port=slurmctld_port,
            node_ports=node_ports,
            cpus=self._cpus,
            gpus=self._gpus,
            accounting=accounting_lines(self.folder, slurmdbd_port) if self.accounting else NO_ACCOUNTING,
        )
        enclosing = {name for name in os.environ if name.startswith(_CLIENT_PREFIXES)}
        self.env = {name: value for name, value in os.environ.items() if name not in enclosing}
        self.env["SLURM_CONF"] = str(self._conf)

        munge = self.folder / "munge"
        munged = [f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid"]
        munged += [f"--seed-file={munge}/seed", f"--log-file={munge}/log", "--foreground"]
        self._add("munged", munge / "socket", *munged)
        if self.accounting:
            mariadbd = _program("mariadbd") or "mariadbd"
            ports = {"slurmdbd_port": slurmdbd_port, "mariadb_port": mariadb_port}
            self._commands["mariadbd"] = make_database(self.folder, mariadbd, **ports)
            self._addresses["mariadbd"] = mariadb_port
            self._add("slurmdbd", slurmdbd_port, "-D")
        self._add("slurmctld", slurmctld_port, "-D", "-f", str(self._conf))
        for name, port in node_ports.items():
            self._add("slurmd", port, "-D", "-f", str(self._conf), "-N", name, name=name)

    def _add(self, program: str, address: Address, *arguments: str, name: str = "") -> None:
        self._commands[name or program] = [_program(program) or program, *arguments]
        self._addresses[name or program] = address

    def _start(self, name: str) -> None:
        """Start a daemon in the foreground as our child, in a session of its own, and wait until it answers."""
        assert name not in self._daemons or self._daemons[name].poll() is not None, f"{name} runs"
        with (self.folder / "log" / f"{name}.out").open("ab") as output:
            daemon = subprocess.Popen(
                self._commands[name],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._daemons[name] = daemon
        deadline = time.monotonic() + 30
        while not _answers(self._addresses[name]):
            if daemon.poll() is not None or time.monotonic() > deadline:
                output = (self.folder / "log" / f"{name}.out").read_text(errors="replace")
                raise RuntimeError(f"{name} did not start (status {daemon.poll()}):\n{output[-2000:]}")
            time.sleep(0.02)

    def _others(self) -> dict[int, str]:
        """The processes of the cluster but its daemons: jobs, what runs them, and clients."""
        daemons = {daemon.pid for daemon in self._daemons.values()}
        found = processes_of(self._conf).items()
        return {pid: name for pid, name in found if pid not in daemons and name not in _CONTROLLER}

    def _no_job(self) -> bool:
        """Whether nothing is queued or running; what is, is cancelled."""
        jobs = self.squeue()
        if jobs:
            self.run("scancel", *sorted({job.partition("_")[0] for job in jobs}))
        return not jobs

    def _all_idle(self) -> bool:
        return all(state == "idle" for state in self.sinfo().values())

    def _resumed(self) -> bool:
        """Whether all nodes are idle; those that were taken out of service are put back."""
        for name, state in self.sinfo().items():
            if state.rstrip("*").startswith(("down", "drain", "fail")):
                self.node(name, "resume")
        return self._all_idle()

    def run(self, *command: str, timeout: float = 20) -> str:
        """Run a client in the cluster's environment and folder; its output, or RuntimeError with what it complained."""
        done = subprocess.run(
            command, env=self.env, cwd=self.folder / "work", capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def squeue(self, *options: str) -> dict[str, str]:
        """Job id -> state, an array task as 12_3; jobs that ended only with "--states=all", and for five minutes."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T", *options).splitlines()
        return dict(map(str.split, lines))

    def sinfo(self) -> dict[str, str]:
        """Node -> state, as idle, mixed, allocated, drained, down; a * after it: does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return dict(map(str.split, lines))

    def wait_until(self, predicate: Callable[[], T], seconds: float = 240) -> T:
        """The first true value of `predicate`; TimeoutError with what the cluster was at after so many seconds."""
        deadline = time.monotonic() + seconds
        while not (value := predicate()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {seconds} s\n{self._situation()}")
            time.sleep(0.05)
        return value

    def _situation(self) -> str:
        try:
            lists = [str(self.squeue("--states=all")), str(self.sinfo())]
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            lists = [str(error)]
        log = (self.folder / "log" / "slurmctld.log").read_text(errors="replace").splitlines()
        return "\n".join([*lists, *log[-15:]])

    def scancel(self, job: str, signal: str | None = None, *, batch: bool = False, full: bool = False) -> None:
        """Cancel a job or an array task, or send it a signal such as "USR2": to its steps; `batch`, to its script only;
        `full`, to both."""
        options = [f"--signal={signal}"] if signal else []
        options += ["--batch"] if batch else []
        options += ["--full"] if full else []
        self.run("scancel", *options, job)

    def requeue(self, job: str) -> None:
        """End a job and queue it again under its id; it starts anew after about ten seconds."""
        self.run("scontrol", "requeue", job)

    def node(self, name: str, state: str) -> None:
        """Set a node "down" or "drain", or "resume" it. Down: its jobs are requeued."""
        reason = [] if state == "resume" else ["reason=test"]
        self.run("scontrol", "update", f"nodename={name}", f"state={state}", *reason)


def _answers(address: Address) -> bool:
    family, target = (
        (socket.AF_UNIX, str(address)) if isinstance(address, Path) else (socket.AF_INET, ("127.0.0.1", address))
    )
    with socket.socket(family) as client:
        try:
            client.connect(target)
        except OSError:
            return False
        return True
