"""Real accounting for a cluster: a private MariaDB and slurmdbd, so that sacct works as on a real site."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

from tests.slurm.configuration import user

NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"

ACCOUNTS = (
    "add cluster ci",
    "add account tests",
    "add account few",
    "add qos few set MaxSubmitJobsPerUser=3",
    "add qos short set MaxWall=5 Flags=DenyOnLimit",
    "add user {user} account=tests defaultaccount=tests",
    "add user {user} account=few MaxSubmitJobs=2",
    "modify user {user} set qos+=few,short",
)
"""What sacctmgr is told: a user without limits, who may also charge an account or ask for a QOS that has some."""


def accounting_lines(folder: Path, slurmdbd_port: int) -> str:
    """The lines of slurm.conf. Clients do not use AuthInfo towards slurmdbd, hence the socket a second time."""
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=limits,qos
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/socket"""


def make_database(folder: Path, mariadbd: str, *, slurmdbd_port: int, mariadb_port: int) -> list[str]:
    """Write slurmdbd.conf and an empty data base; return the command that serves it."""
    password = secrets.token_hex(16)
    conf = folder / "etc" / "slurmdbd.conf"
    conf.touch(mode=0o600)
    conf.write_text(
        f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser={user()}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
    )
    grants = folder / "mariadb.sql"
    grants.touch(mode=0o600)
    grants.write_text(
        f"create database if not exists slurm;\n"
        f"create user if not exists slurm@'127.0.0.1' identified by '{password}';\n"
        f"grant all on slurm.* to slurm@'127.0.0.1';\n"
    )
    (folder / "mariadb").mkdir(mode=0o700)
    common = [mariadbd, "--no-defaults", f"--datadir={folder}/mariadb", f"--user={user()}"]
    done = subprocess.run([*common, "--bootstrap"], input=_system_tables(), capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"mariadbd --bootstrap: {done.stderr}")
    return [
        *common,
        f"--socket={folder}/mariadb.socket",
        f"--pid-file={folder}/mariadb.pid",
        f"--port={mariadb_port}",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        f"--init-file={grants}",
    ]


def _system_tables() -> str:
    """The SQL that mariadb-install-db would send, which itself needs one more package."""
    folder = next(folder for folder in (Path("/usr/share/mysql"), Path("/usr/share/mariadb")) if folder.is_dir())
    scripts = [folder / f"{folder.name}_{part}.sql" for part in ("system_tables", "system_tables_data")]
    return "create database mysql;\nuse mysql;\n" + "\n".join(script.read_text() for script in scripts)
