"""Test a smoke report on Slurm: start Slurm on this machine, run two jobs, kill one, compare with one process.

    make test-cluster      # as root, with Debian's packages slurm-wlm and munge

It prints the reason if it cannot run on this machine, and stops all daemons at the end.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hw1lib import files, paths
from hw1lib.steps import lock
from tests.conftest import everything_of

CONF = """\
ClusterName=hw1
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
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
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
CLUSTER = """\
kind: SLURM
jobs: 2
options:
  cores: 1
  memory: 4GB
  walltime: "02:00:00"
  job_directives_skip: ["--mem"]
  log_directory: {folder}/logs
"""
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")


def missing():
    """Return why the test cannot run on this machine; "" if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "it starts Slurm's daemons, which needs root"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"{', '.join(absent)} are not installed (Debian: slurm-wlm, munge)" if absent else ""


def run(*words, **options):
    return subprocess.run([*map(str, words)], check=True, text=True, capture_output=True, **options).stdout


def daemon(*words):
    """Start a process that writes its own log file."""
    return subprocess.Popen([*map(str, words)], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def slurm(folder):
    """Run Slurm on this machine during the block."""
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(conf)
    os.chmod(folder, 0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    os.chmod(key, 0o400)
    Path("/run/munge").mkdir(exist_ok=True)
    log = f"--log-file={folder}/munged.log"
    daemons = [daemon("munged", "-F", "--force", f"--key-file={key}", log, f"--pid-file={folder}/munged.pid")]
    try:
        time.sleep(1)
        daemons += [daemon(name, "-D", "-f", conf) for name in ("slurmctld", "slurmd")]
        for _ in range(60):
            with contextlib.suppress(subprocess.CalledProcessError):
                if "idle" in run("sinfo", "-h", "-o", "%T"):
                    break
            time.sleep(1)
        else:
            raise SystemExit(f"Slurm did not come up; see {folder}/*.log")
        print(run("sinfo"), flush=True)
        yield
    finally:
        with contextlib.suppress(Exception):
            run("scancel", "--user=root")
            time.sleep(3)
        for process in reversed(daemons):
            process.terminate()
            process.wait()


def report(build, *words):
    """Start a smoke report of three seeds with one thread."""
    command = [sys.executable, "-m", "hw1lib", "report", "--profile", "smoke", "--seeds", "3", *words]
    environment = os.environ | {"HW1_BUILD": str(build), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--set", "threads=1", "checkpoint_every=0"], cwd=paths.ROOT, env=environment)


def job_of(step):
    """Return the Slurm job that runs a step which has a checkpoint; None if there is none."""
    for checkpoint in step.glob("*/checkpoint.pt"):
        with contextlib.suppress(OSError, LookupError):
            holder = checkpoint.with_name(lock.HOLDER).read_text().split()[1]  # "process 123 on host …"
            variables = Path(f"/proc/{holder}/environ").read_bytes().decode().split("\0")
            return dict(pair.split("=", 1) for pair in variables if "=" in pair)["SLURM_JOB_ID"]
    return None


def main():
    if reason := missing():
        print(f"NOT RUN: the test on Slurm, because {reason}.")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with slurm(folder):
            file = folder / "cluster.yaml"
            file.write_text(CLUSTER.format(folder=folder))
            process, killed = report(folder / "slurm", "--cluster", str(file)), None
            while process.poll() is None:
                time.sleep(0.2)
                if killed is None and (killed := job_of(folder / "slurm" / "smoke" / "steps" / "pretrain")):
                    run("scancel", "--signal=KILL", "--full", killed)
                    print(f"killed job {killed}", flush=True)
            print(run("squeue", "-a", "-t", "all"), flush=True)
            assert process.returncode == 0 and killed, (process.returncode, killed)
        assert report(folder / "one").wait() == 0
        results, expected = (
            {path.parent.relative_to(folder / which): everything_of(path.parent) for path in done}
            for which, done in (
                (which, (folder / which).glob("smoke/steps/*/*/done.json")) for which in ("slurm", "one")
            )
        )
        assert results.keys() == expected.keys()
        resumed = [path.parent.parent.name for path in (folder / "slurm").glob("smoke/steps/*/*/run.json")
                   if files.read_json(path)["resumed"]]  # fmt: skip
        assert "pretrain" in resumed, resumed
        wrong = [str(step) for step in expected if results[step] != expected[step]]
        assert not wrong, wrong
        print(f"{len(expected)} steps, three seeds, two Slurm jobs, one killed: every byte is as with one process.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
