"""Dask workers for a report: local processes, batch jobs, or those of a running scheduler."""

import contextlib
import logging
import platform
import shlex
import signal
import sys
import tempfile
from pathlib import Path

import dask
import yaml
from distributed import Client, LocalCluster, Security

from hw1lib.errors import UserError

# Dask counts the death of a worker against every step assigned to it, so it may blame a step only after many.
MAX_WORKER_DEATHS = 5  # times the number of workers
CONNECT_TIMEOUT = "20s"
LOCALHOST = "127.0.0.1"


@contextlib.contextmanager
def connect(where, book):
    """Yield a Dask client of the workers that `where` names; those that it starts end with the block.

    Args:
        where: local:N, the address of a scheduler such as tls://host:8786, or a file such as my-cluster.yaml.
        book: workbook.Workbook.

    Raises:
        UserError: `where` does not describe a cluster, or no scheduler answers.
    """
    kind, _, count = where.partition(":")
    is_file = where.endswith((".yaml", ".yml"))
    description = _read(Path(where)) if is_file else {"jobs": count}
    is_own = is_file or kind == "local"
    if is_own and not (str(description["jobs"]).isdecimal() and int(description["jobs"])):
        raise UserError(
            f"CLUSTER={where}: write it as local:N, such as local:2 for two workers; in a file, set jobs: N."
        )
    for name in ("client", "utils"):  # run_steps.run reports a lost scheduler in one paragraph
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    config = {"distributed.comm.timeouts.connect": CONNECT_TIMEOUT, "distributed.nanny.pre-spawn-environ": {}}
    if is_own:
        config["distributed.scheduler.allowed-failures"] = MAX_WORKER_DEATHS * int(description["jobs"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        try:
            if is_file:
                book.out.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".tls-", dir=book.out))  # mode 0700
                cluster = stack.enter_context(_start_jobs(where, description, folder))
                for part in ("ca_file", "cert", "key"):
                    stack.enter_context(getattr(cluster, f"_job_{part}"))  # deleted before their folder
            elif is_own:
                on_gpu = book.device.type != "cpu"
                cluster = stack.enter_context(LocalCluster(
                    n_workers=int(count), threads_per_worker=1 + on_gpu, resources={"GPU": 1} if on_gpu else None,
                    memory_limit=0, silence_logs=50, host=LOCALHOST, dashboard_address=f"{LOCALHOST}:0",
                    protocol="tls://", security=Security.temporary(),
                ))  # fmt: skip
            client = stack.enter_context(Client(cluster if is_own else where))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            variables = "CA_FILE, CLIENT__CERT and CLIENT__KEY, each after DASK_DISTRIBUTED__COMM__TLS__"
            hint = f" For tls://, set your certificates with the variables {variables}." if kind == "tls" else ""
            raise UserError(
                f"CLUSTER={where}: no scheduler answers there ({error}). Start one with `dask scheduler`, or give "
                f"local:N or a file my-cluster.yaml.{hint}"
            ) from error
        print(f"Workers {where} (waiting at most 10 minutes for the first one)")
        print(f"Watch   {_dashboard(client, is_own)}", flush=True)
        yield client


def _dashboard(client, is_own):
    """Return how to reach Dask's dashboard; that of a cluster started here listens on this machine only."""
    port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    if port is None or not is_own:
        return client.dashboard_link or "the scheduler has no dashboard"
    tunnel = f"ssh -L {port}:{LOCALHOST}:{port} {platform.node()}"
    return f"http://{LOCALHOST}:{port}/status (from another machine after {tunnel})"


def _read(file):
    """Return a cluster's description, a dict: kind (a dask-jobqueue class without "Cluster"), jobs and options."""
    try:
        description = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {name: description[name] for name in ("kind", "jobs", "options")}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        example = "kind: SLURM, jobs: 8, options: {cores: 1, memory: 32GB}"
        raise UserError(f"{file} does not describe a cluster ({error}); an example is {example}") from error


def _start_jobs(file, description, folder):
    """Return a cluster of batch jobs, each a worker; jobs that end are replaced.

    Scheduler and workers speak TLS and dashboards listen on localhost, whatever the file says.

    Args:
        file, description: the YAML file, for error messages, and its content as returned by `_read`.
        folder: where certificates are written; only the user may read it, and all machines must see it.
    """
    handler = signal.getsignal(signal.SIGINT)
    import dask_jobqueue  # installs a SIGINT handler that exits silently

    signal.signal(signal.SIGINT, handler)
    try:
        kind = getattr(dask_jobqueue, f"{description['kind']}Cluster")
        defaults = dask.config.get(f"jobqueue.{kind.job_cls.default_config_name()}", {})
        options = {"processes": 1, "python": shlex.quote(sys.executable)} | description["options"]
        scheduler = options.get("scheduler_options") or defaults.get("scheduler-options") or {}
        port = str(scheduler.get("dashboard_address", "")).rpartition(":")[2] or "0"
        arguments = options.get("worker_extra_args") or defaults.get("worker-extra-args") or []
        tls = {"security": Security.temporary(), "protocol": "tls://"}
        options |= tls | {
            "scheduler_options": scheduler | tls | {"dashboard_address": f"{LOCALHOST}:{port}"},
            "worker_extra_args": [*arguments, "--dashboard-address", f"{LOCALHOST}:0"],
            "shared_temp_directory": folder,
        }
        cluster = kind(**options)
    except (AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{file} does not describe a cluster: {error}") from error
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):  # dask-jobqueue does not quote them in its script
        path = getattr(cluster._job_kwargs["security"], name)
        setattr(cluster._job_kwargs["security"], name, shlex.quote(path))
    cluster.adapt(minimum_jobs=int(description["jobs"]), maximum_jobs=int(description["jobs"]))
    return cluster
