"""Dask workers for a report: a cluster of our own, closed to everybody else, or a scheduler that runs already."""

import contextlib
import logging
import platform
import shlex
import sys
import tempfile
from pathlib import Path

from hw1lib.errors import UserError

MAX_WORKER_DEATHS = 5  # under one step, for each worker that there is: then the step is held to be the cause
CONNECT_TIMEOUT = "20s"
LOCALHOST = "127.0.0.1"


@contextlib.contextmanager
def connect(where, book):
    """Yield a Dask client of the workers that `where` names; workers that this starts end with it.

    Args:
        where: local:N, the address of a scheduler such as tls://host:8786, or a file cluster.yaml.
        book: workbook.Workbook.

    Raises:
        UserError: `where` describes no cluster, or nobody answers there.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    kind, _, count = where.partition(":")
    in_jobs = where.endswith((".yaml", ".yml"))
    described = _read(Path(where)) if in_jobs else {"jobs": count}
    is_ours = in_jobs or kind == "local"
    if is_ours and not (str(described["jobs"]).isdecimal() and int(described["jobs"])):
        raise UserError(f"CLUSTER={where}: write it as local:N, such as local:2 for two workers; a file says jobs: N.")
    for name in ("client", "utils"):  # `cluster.run` reports a lost scheduler in fewer words
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    config = {"distributed.comm.timeouts.connect": CONNECT_TIMEOUT, "distributed.nanny.pre-spawn-environ": {}}
    if is_ours:  # a worker that dies counts against all steps that were planned for it
        config["distributed.scheduler.allowed-failures"] = MAX_WORKER_DEATHS * int(described["jobs"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        cluster = where
        if is_ours:
            security = Security.temporary()
        if in_jobs:
            book.out.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".tls-", dir=book.out))  # mode 0700
            cluster = stack.enter_context(_jobs(where, described, security, folder))
            for part in ("ca_file", "cert", "key"):
                stack.enter_context(getattr(cluster, f"_job_{part}"))  # deleted before their folder
        elif is_ours:
            on_gpu = book.device.type != "cpu"
            more = {"threads_per_worker": 2, "resources": {"GPU": 1}} if on_gpu else {"threads_per_worker": 1}
            cluster = LocalCluster(
                n_workers=int(count), memory_limit=0, silence_logs=50, dashboard_address=f"{LOCALHOST}:0",
                security=security, protocol="tls://", host=LOCALHOST, **more,
            )  # fmt: skip
            stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(cluster))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            names = "CA_FILE, CLIENT__CERT and CLIENT__KEY, each after DASK_DISTRIBUTED__COMM__TLS__,"
            hint = f" For tls:// the variables {names} name your certificates." if kind == "tls" else ""
            raise UserError(
                f"CLUSTER={where}: no scheduler answers there ({error}). Start one with `dask scheduler`, or give "
                f"local:N or a file my-cluster.yaml.{hint}"
            ) from error
        print(f"Workers {where}\nWatch   {_dashboard(client, is_ours)}", flush=True)
        yield client


def _dashboard(client, is_ours):
    """How to reach Dask's dashboard; that of a cluster of our own listens on this machine alone."""
    port = client.scheduler_info(n_workers=0)["services"].get("dashboard")
    if port is None or not is_ours:
        return client.dashboard_link or "the scheduler has no dashboard"
    tunnel = f"ssh -L {port}:{LOCALHOST}:{port} {platform.node()}"
    return f"http://{LOCALHOST}:{port}/status (from another machine after {tunnel})"


def _read(file):
    """Read the description of a cluster: kind, a class of dask-jobqueue without "Cluster"; jobs; its options."""
    import yaml

    try:
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {name: described[name] for name in ("kind", "jobs", "options")}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        example = "kind: SLURM, jobs: 8, options: {cores: 1, memory: 32GB}"
        raise UserError(f"{file} does not describe a cluster ({error}); docs/cluster.md has one: {example}") from error


def _jobs(file, described, security, folder):
    """Start batch jobs, each a worker; those that end are replaced.

    Scheduler and workers talk to each other through TLS, and to nobody without their certificate; their dashboards
    listen on their own machine alone.

    Args:
        folder: where workers read the certificate; only the user may, and all machines see it.
    """
    import dask
    import dask_jobqueue

    try:
        kind = getattr(dask_jobqueue, f"{described['kind']}Cluster")
        defaults = dask.config.get(f"jobqueue.{kind.job_cls.default_config_name()}", {})
        options = {"processes": 1, "python": shlex.quote(sys.executable)} | described["options"]
        scheduler = options.get("scheduler_options") or defaults.get("scheduler-options") or {}
        port = str(scheduler.get("dashboard_address", "")).rpartition(":")[2] or "0"
        arguments = options.get("worker_extra_args") or defaults.get("worker-extra-args") or []
        tls = {"security": security, "protocol": "tls://"}
        options |= tls | {
            "scheduler_options": scheduler | tls | {"dashboard_address": f"{LOCALHOST}:{port}"},
            "worker_extra_args": [*arguments, "--dashboard-address", f"{LOCALHOST}:0"],
            "shared_temp_directory": folder,
        }
        cluster = kind(**options)
    except (AttributeError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{file} does not describe a cluster: {error}") from error
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):  # they go into a shell script as they are
        path = getattr(cluster._job_kwargs["security"], name)
        setattr(cluster._job_kwargs["security"], name, shlex.quote(path))
    cluster.adapt(minimum_jobs=int(described["jobs"]), maximum_jobs=int(described["jobs"]))
    return cluster
