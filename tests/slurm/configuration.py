"""The files a private SLURM reads: slurm.conf and what stands beside it. Nothing in /etc is used."""

from __future__ import annotations

import os
import pwd
import random
import socket
from pathlib import Path

GPU_DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random"]
"""What stands in for GPUs: slurmd asks for one device file a GPU, whatever it is."""
PORTS = 40
_SYSTEM_RANDOM = random.SystemRandom()


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def free_ports() -> int:
    """The first of PORTS free ports in a row, drawn at random so that clusters side by side keep apart."""
    for _ in range(100):
        first = _SYSTEM_RANDOM.randrange(20000, 32000, PORTS)
        if all(_is_free(port) for port in range(first, first + PORTS)):
            return first
    raise RuntimeError(f"no {PORTS} free ports in a row between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_configuration(
    folder: Path, *, slurmctld_port: int, node_ports: dict[str, int], cpus: int, gpus: int, accounting: str
) -> Path:
    """Write etc/, the munge key and empty folders for what the daemons keep; return slurm.conf.

    `accounting` is the lines of slurm.conf that say where finished jobs are kept.
    """
    for part in ("etc", "munge", "state", "spool", "log", "work"):
        (folder / part).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
        f" CPUs={cpus} RealMemory=16000{gres} State=UNKNOWN"
        for name, port in node_ports.items()
    )
    conf = folder / "etc" / "slurm.conf"
    conf.write_text(
        f"""\
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={slurmctld_port}
{_listen_on_loopback()}
SlurmUser={user()}
SlurmdUser={user()}
AuthType=auth/munge
# A requeued job waits cred_expire before it starts again; below KillWait + 6 it can meet its own dying self.
AuthInfo=socket={folder}/munge/socket,cred_expire=9
KillWait=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
MailProg=/bin/true
MpiDefault=none
# linuxproc: scancel also ends a child with a session of its own.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Nodes may claim more than the machine has. Without DefMemPerCPU a job takes a whole node's memory.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdTimeout=15
ReturnToService=1
JobRequeue=1
# Not 1: a result of an earlier cluster in the same folder must not be taken for this one's.
FirstJobId={_SYSTEM_RANDOM.randrange(1000, 50000)}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=10 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
    )
    devices = ",".join(GPU_DEVICES[:gpus])
    lines = [f"NodeName={name} Name=gpu File={devices}\n" for name in node_ports] if gpus else []
    (folder / "etc" / "gres.conf").write_text("".join(lines))
    # slurmd loads a cgroup plugin even where nothing uses it; this one starts on any machine.
    (folder / "etc" / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    return conf


def _listen_on_loopback() -> str:
    """NoInAddrAny means the address of the host's own name, so it is of use only where that is 127.0.0.1."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "none"
    if address == "127.0.0.1":
        return "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    return f"# The address of this host's name is {address}: the daemons listen on all addresses."
