"""A Slurm cluster on this machine: its own munge, controller and nodes, in a folder of its own."""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
# A requeued job waits for `cred_expire`; preempted jobs are queued again.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MpiDefault=none
FirstJobId={first_job}
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 "
    "State=UNKNOWN"
)


class Cluster:
    """Two nodes of two cores each, which any host name of this machine can stand for."""

    def __init__(self, folder):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.nodes = [socket.gethostname(), "localhost"]  # jax looks their addresses up
        for name in ("state", *self.nodes):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        host, ports = socket.gethostname(), _free_ports(3)
        nodes = [
            NODE.format(name=name, host=host, port=port)
            for name, port in zip(self.nodes, ports[1:], strict=True)
        ]
        values = {"host": host, "port": ports[0], "user": getpass.getuser(), "folder": folder}
        # Jobs of two clusters at a time must differ: jax takes its port from the job's number.
        first_job = secrets.randbelow(2**16) + 1
        self.conf.write_text(CONF.format(nodes="\n".join(nodes), first_job=first_job, **values))
        self._daemons = {}
        munge = [f"--key-file={key}", f"--socket={folder}/munge.sock"]
        files = [f"--{x}-file={folder}/munge.{x}" for x in ("pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", "--num-threads=2", *munge, *files)
        _until(lambda: (folder / "munge.sock").exists(), "munged")
        self._start("slurmctld", "-D", "-f", self.conf)
        for name in self.nodes:
            self.start_node(name)
        os.environ["SLURM_CONF"] = str(self.conf)
        _until(lambda: self.ask("sinfo", "-h", "-o", "%t %D", fails=True).split() == ["idle", "2"])

    def _start(self, name, *arguments, label=""):
        with open(self.folder / f"{label or name}.out", "w") as log:
            self._daemons[label or name] = subprocess.Popen(
                [shutil.which(name, path=PATH), *map(str, arguments)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_node(self, name):
        self._start("slurmd", "-D", "-f", self.conf, "-N", name, label=name)

    def kill_node(self, name):
        """As a power failure does: slurmd and all that it started."""
        daemon = self._daemons.pop(name)
        processes = [daemon.pid, *_below(daemon.pid)]
        # What starts a job's steps goes on without slurmd, in sessions of its own.
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
        for job in self.ask("squeue", "-h", "-w", name, "-o", "%A").split():
            steps = [x.split() for x in listed.splitlines() if f"slurmstepd: [{job}." in x]
            for pid in (int(x[0]) for x in steps):
                if f"SLURMD_NODENAME={name}" in _environment_below(pid):
                    processes += [pid, *_below(pid)]
        for pid in processes:
            _kill(pid)
        daemon.wait()

    def ask(self, *command, fails=False):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert fails or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments):
        """The number of a new job."""
        return self.ask("sbatch", "--parsable", *arguments)

    def state(self, job):
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def until(self, reached, what="", timeout=900):
        _until(reached, what, timeout)

    def cancel_all(self):
        self.ask("scancel", "--user", getpass.getuser(), fails=True)
        _until(lambda: not self.ask("squeue", "-h"), "scancel")

    def stop(self):
        self.cancel_all()
        for daemon in reversed(list(self._daemons.values())):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        del os.environ["SLURM_CONF"]


def require_slurm():
    """Skips where Slurm is missing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"needs Slurm ({missing[0]} is missing): apt-get install munge slurm-wlm")
    if sys.platform != "linux":
        pytest.skip("Slurm's nodes are tried on Linux only")


def _until(reached, what="", timeout=300):
    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(0.1)


def _free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _below(pid):
    """The processes that a process has started, and those that these have started."""
    asked = ["ps", "--no-headers", "-o", "pid", "--ppid", str(pid)]
    children = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return [below for child in map(int, children) for below in (child, *_below(child))]


def _environment_below(pid):
    texts = []
    for child in _below(pid):
        try:
            with open(f"/proc/{child}/environ") as file:
                texts.append(file.read())
        except OSError:
            continue
    return "".join(texts)


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
