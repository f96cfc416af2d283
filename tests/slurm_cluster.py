"""A real SLURM of one node on loopback, for tests: ``python tests/slurm_cluster.py COMMAND`` runs a command in one.

Needs Debian's packages slurm-wlm and munge. All files lie in one folder, and all programs run as the user who starts
this one. The machine's own configuration is neither read nor changed.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue")
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=20
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStart(RuntimeError):
    """SLURM cannot be started here. The message says why."""


@contextlib.contextmanager
def slurm_cluster(cpus: int = 4) -> Iterator[dict[str, str]]:
    """Start SLURM, and stop it at the end.

    Args:
        cpus: the number of CPUs that the node claims to have.

    Returns:
        Environment variables for processes that use this SLURM.

    Raises:
        CannotStart: a program is missing, or the node does not answer within a minute.
    """
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        raise CannotStart(f"no {', '.join(missing)}; apt install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # munged and slurmctld require this
    environment = {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons: list[subprocess.Popen] = []
    try:
        _configure(folder, cpus)
        for command in _commands(folder):
            log = open(folder / f"{command[0]}.out", "wb")  # noqa: SIM115
            daemons.append(
                subprocess.Popen(
                    command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
                )
            )
            log.close()
            time.sleep(0.5)  # gives munged time to make its socket
        _wait_until_idle(folder, {**os.environ, **environment}, daemons)
        yield environment
    finally:
        _stop(daemons, {**os.environ, **environment})
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, cpus: int) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    text = CONFIG.format(
        host=socket.gethostname().split(".")[0],
        controller_port=ports[0],
        node_port=ports[1],
        user=_user(),
        folder=folder,
        cpus=cpus,
    )
    (folder / "slurm.conf").write_text(text)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _commands(folder: Path) -> list[list[str]]:
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    files = [f"--{option}={folder / name}" for option, name in {**munge, "log-file": "munge.log"}.items()]
    return [["munged", "--foreground", "--force", *files], ["slurmctld", "-D"], ["slurmd", "-D"]]


def _wait_until_idle(folder: Path, environment: dict[str, str], daemons: list[subprocess.Popen]) -> None:
    deadline, dead = time.monotonic() + 60, []
    while time.monotonic() < deadline:
        dead = [" ".join(map(str, cast(list, daemon.args))) for daemon in daemons if daemon.poll() is not None]
        if dead:
            break
        answer = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        if answer.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    said = "\n".join(
        f"{file.name}: {file.read_text(errors='replace')[-600:]}"
        for file in sorted(folder.glob("*.out")) + sorted(folder.glob("*.log"))
    )
    raise CannotStart(f"{', '.join(dead) or 'the node'} did not start:\n{said}")


def _stop(daemons: list[subprocess.Popen], environment: dict[str, str]) -> None:
    if len(daemons) == 3 and all(daemon.poll() is None for daemon in daemons):
        subprocess.run(["scancel", "--full", "--user", _user()], env=environment, capture_output=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            left = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True)
            if not left.stdout.strip():
                break
            time.sleep(0.5)
    for daemon in reversed(daemons):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGTERM)
        try:
            daemon.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


if __name__ == "__main__":
    try:
        with slurm_cluster() as variables:
            sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **variables}).returncode)
    except CannotStart as error:
        sys.exit(str(error))
