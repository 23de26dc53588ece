"""Hands the steps of a report out to workers, on this machine or on many (Dask distributed).

Each step is a process of its own, `hw1lib run STEP`, so a crash costs one step, and memory and devices come back. What
it writes lies in the build folder, on a file system that all workers see; nothing else travels.
"""

import contextlib
import ctypes
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path

from hw1lib import paths
from hw1lib.errors import UserError
from hw1lib.steps.graph import check_of

TOPIC = "hw1lib"  # of the events that carry what steps print
PACKAGES = ("torch", "torchvision", "byol-pytorch", "numpy", "scikit-learn", "distributed")
ROOM = 2e9  # bytes that have to be free where results are written
DEATHS = 5  # workers that may die under a step before it is called its fault
SHOWN = 12  # last lines of a failed step
EPOCH = re.compile(r" epoch (\d+)/(\d+) ")


def run(book, where):
    """Runs all steps that are not done, each as soon as those that it builds on are.

    Args:
        book: workbook.Workbook.
        where: local:N, the address of a scheduler such as tcp://host:8786, or a file cluster.yaml.

    Raises:
        UserError: a step failed, or the workers cannot do it; what was finished is kept.
    """
    distributed = _distributed()
    todo = {label: (steps, name) for label, steps, name in book.planned() if steps.status(name) != "done"}
    if not todo:
        return
    with connect(where, book) as client, Board(client, where) as board:
        check(client, book)
        futures = {}
        try:
            for label, (steps, name) in todo.items():
                futures[label] = _submit(client, book, label, steps, name, futures, _threads(book, where))
                board.add(label, _images(book, name))
            failed = _finish(distributed, futures, board)
        except (distributed.CancelledError, distributed.comm.CommClosedError, OSError) as error:
            raise UserError(
                f"The scheduler of {where} is gone ({type(error).__name__}). Nothing that was finished is lost, and "
                "half done steps have their checkpoints: run the same command again."
            ) from error
    if failed:
        label, said = next(iter(failed.items()))
        more = f" So did {', '.join(list(failed)[1:])}." if len(failed) > 1 else ""
        raise UserError(f"Step {label} failed: {said}{more} Everything that does not build on it is finished.")


def _distributed():
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise UserError(
            "Workers need Dask: .venv/bin/python -m pip install -r requirements-cluster.txt, then run the same command "
            "again. Without --cluster all steps run here, one after the other."
        ) from error
    return distributed


@contextlib.contextmanager
def connect(where, book):
    """A client of the workers that `where` names; those that it starts end with it."""
    import dask
    from distributed import Client, LocalCluster

    dask.config.set({"distributed.scheduler.allowed-failures": DEATHS, "distributed.comm.timeouts.connect": "20s"})
    kind, _, count = where.partition(":")
    with contextlib.ExitStack() as open_:
        if kind == "local":
            if not count.isdigit() or int(count) < 1:
                raise UserError(f"CLUSTER={where}: write it as local:N, such as local:2 for two workers.")
            on_gpu = book.device.type != "cpu"
            cluster = LocalCluster(
                n_workers=int(count), threads_per_worker=2 if on_gpu else 1, memory_limit=0, silence_logs=50,
                resources={"GPU": 1} if on_gpu else {}, dashboard_address="127.0.0.1:0",
            )  # fmt: skip
            open_.enter_context(cluster)
        elif where.endswith((".yaml", ".yml")):
            cluster = open_.enter_context(_jobs(Path(where)))
        else:
            cluster = where
        try:
            client = open_.enter_context(Client(cluster, set_as_default=False))
        except (OSError, ValueError) as error:
            raise UserError(
                f"CLUSTER={where}: no scheduler answers there ({error}). Start one with `dask scheduler`, or give "
                "local:N or a file my-cluster.yaml."
            ) from error
        yield client


def _jobs(file):
    """A cluster of batch jobs from a file such as

    kind: SLURM        # or PBS, LSF, SGE …: a class of dask-jobqueue
    jobs: 8
    options: {cores: 4, memory: 32GB, walltime: "08:00:00", worker_extra_args: [--resources, GPU=1]}
    """
    import dask_jobqueue
    import yaml

    try:
        wanted = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = getattr(dask_jobqueue, f"{wanted['kind']}Cluster")
        cluster = kind(**{"processes": 1, "python": sys.executable} | wanted["options"])
        cluster.adapt(minimum_jobs=int(wanted["jobs"]), maximum_jobs=int(wanted["jobs"]))  # dead ones are replaced
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        example = "kind: SLURM, jobs: 8, options: {cores: 4, memory: 32GB}"
        raise UserError(f"{file} does not describe a cluster ({error}); docs/cluster.md has one: {example}") from error
    return cluster


# --- what is checked before anything runs


def check(client, book):
    """Holds every worker against this process: the same folders, code and packages, and room on the disk.

    Raises:
        UserError: one of them differs; it is named.
    """
    client.wait_for_workers(1)
    if book.device.type != "cpu" and not any(
        worker["resources"].get("GPU") for worker in client.scheduler_info(n_workers=-1)["workers"].values()
    ):
        raise UserError(
            f"Steps run on {book.device}, but no worker offers a GPU. Start them with --resources GPU=1, each with its "
            "own CUDA_VISIBLE_DEVICES, or give --device cpu."
        )
    book.out.mkdir(parents=True, exist_ok=True)
    token, mark = secrets.token_hex(8), book.out / ".seen-by-all"
    mark.write_text(token)
    try:
        mine = look(mark, book.root, paths.ROOT)
        for worker, theirs in client.run(look, mark, book.root, paths.ROOT).items():
            host = f"Worker {worker} on {theirs['host']}"
            if theirs["token"] != token:
                raise UserError(f"{host} does not see the build folder {book.out}; --out must be on a shared disk.")
            if not theirs["data"]:
                raise UserError(f"{host} does not see the data in {book.root}; it must be on a shared disk.")
            for what in ("commit", *PACKAGES):
                if theirs[what] != mine[what]:
                    raise UserError(
                        f"{host} has {what} {theirs[what] or 'not at all'}, but this process {mine[what]}. All need "
                        f"the same: let workers run {sys.executable} in {paths.ROOT}."
                    )
            if theirs["room"] < ROOM:
                raise UserError(
                    f"{host} has {theirs['room'] / 1e9:.1f} GB left in {book.out}; results need {ROOM / 1e9:.0f}."
                )
    finally:
        mark.unlink(missing_ok=True)


def look(mark, data, root):
    """What a process sees, as plain data."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(Exception):
            versions[name] = version(name)
    token = mark.read_text() if mark.is_file() else ""
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    room = shutil.disk_usage(mark.parent).free if token else 0
    seen = {"token": token, "data": data.is_dir(), "room": room, "commit": commit, "host": platform.node()}
    return dict.fromkeys(PACKAGES, "") | versions | seen


# --- steps


def _threads(book, where):
    """Threads of each step: the setting; on this machine's CPUs, as many as leave each worker its share."""
    kind, _, count = where.partition(":")
    share = max(1, len(os.sched_getaffinity(0)) // int(count)) if kind == "local" and book.device.type == "cpu" else 0
    return book.profile.threads or share


def _submit(client, book, label, steps, name, futures, threads):
    """Orders a step, to run when those in `futures` that it builds on are done; returns its future."""
    step = steps.step(name)
    needs = {steps.key(other) for other in {*step.upstream, check_of(step.problem)} - {name}}
    keys = {label: its.key(other) for label, its, other in book.planned()}
    after = [future for label, future in futures.items() if keys[label] in needs]
    resources = {"GPU": 1} if book.device.type != "cpu" and step.trains else {}
    words, key = [sys.executable, *steps.command(name)], f"{label} {keys[label]} {secrets.token_hex(3)}"
    words = [str(paths.ROOT), threads, words]
    return client.submit(work, label, *words, *after, key=key, pure=False, resources=resources)


class Failed(Exception):
    """A step that ended by itself with an error: its label, and what it said last."""


def work(label, folder, threads, words, *after):
    """On a worker: runs a step, and passes on each line that it prints."""
    from distributed import get_worker

    worker, last, environment = get_worker(), deque(maxlen=SHOWN), dict(os.environ)
    place = f"{worker.name} on {platform.node()}"
    if isinstance(worker.name, int) and "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = str(worker.name)
    worker.log_event(TOPIC, {"label": label, "place": place, "line": ""})
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", preexec_fn=_end_with_parent,
    )  # fmt: skip
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            worker.log_event(TOPIC, {"label": label, "place": place, "line": line.rstrip()})
        code = process.wait()
    finally:
        process.kill()
    if code:
        said = [line for line in last if line]
        raise Failed(label, next((line for line in reversed(said) if line.startswith("hw1lib: ")), "\n".join(said)))
    return label


def _end_with_parent():
    """Lets the system end this process when the worker has ended, however that did (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _finish(distributed, futures, board):
    """Waits for all; returns what failed by itself: {label: what it said}."""
    labels, failed = {future: label for label, future in futures.items()}, {}
    for future in distributed.as_completed(futures.values()):
        label = labels[future]
        if future.status == "cancelled" or future.status == "lost":
            raise distributed.CancelledError(label)
        if future.status == "finished":
            board.end(label, "done")
            continue
        error = future.exception()
        if isinstance(error, Failed) and error.args[0] != label:
            board.end(label, f"not run: {error.args[0]} failed")
        else:
            said = error.args[1] if isinstance(error, Failed) else f"{DEATHS} workers died under it ({error})."
            failed[label] = said.removeprefix("hw1lib: ")
            board.end(label, "failed")
    return failed


def _images(book, name):
    """How many images an epoch of a step has, for images/s; 0 where it has none."""
    one, two = book.data.problem1, book.data.problem2
    if name.startswith("pretrain"):
        return len(one.pool)
    if name.startswith("finetune") or name in ("control-random", "control-colour"):
        return len(one.train)
    return len(two.train) if name.startswith("segment-") else 0


# --- what one sees


class Board:
    """A live table of the steps; where the output is no terminal, a line an event.

    Args:
        client: distributed.Client.
        where: what the workers are called.
    """

    def __init__(self, client, where):
        from rich.console import Console
        from rich.live import Live

        self.client, self.rows, self.console = client, {}, Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, refresh_per_second=2, get_renderable=self.table)
        self.shows = self.console.is_terminal
        print(f"Workers {where}\nWatch   {client.dashboard_link}", flush=True)

    def __enter__(self):
        self.client.subscribe_topic(TOPIC, self._heard)
        if self.shows:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.shows:
            self.live.stop()
        with contextlib.suppress(Exception):  # its scheduler may be gone
            self.client.unsubscribe_topic(TOPIC)

    def add(self, label, images):
        self.rows[label] = {"state": "waits", "place": "", "epoch": "", "images": images, "began": None, "done": (0, 0)}

    def end(self, label, state):
        self.rows[label]["state"] = state
        self._say(f"{label}: {state}")

    def _heard(self, event):
        message = event[1]
        row = self.rows.get(message["label"])
        if row is None:
            return
        if not message["line"]:
            row |= {"state": "runs", "place": message["place"], "began": None}
            self._say(f"{message['label']}: runs on worker {message['place']}")
            return
        if found := EPOCH.search(message["line"]):
            now, done = time.monotonic(), tuple(map(int, found.groups()))
            row["began"] = row["began"] or (now, done[0])
            row |= {"done": done, "at": now}
            self._say(message["line"])

    def _say(self, line):
        if not self.shows:
            print(f"  {line}", flush=True)

    def table(self):
        """The rows as a rich table: what runs first, then what waits, then how many are done."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("step", "where", "epoch", "images/s", "remaining"):
            table.add_column(name, no_wrap=True)
        order = {"runs": 0, "failed": 1, "waits": 2}
        shown = [(label, row) for label, row in self.rows.items() if row["state"] != "done"]
        for label, row in sorted(shown, key=lambda pair: order.get(pair[1]["state"], 3))[:20]:
            table.add_row(label, row["place"] if row["state"] == "runs" else row["state"], *self._progress(row))
        done = sum(row["state"] == "done" for row in self.rows.values())
        table.add_row(f"{done} of {len(self.rows)} done", "", "", "", "")
        return table

    def _progress(self, row):
        """Epoch, images a second and the time that is left, as text."""
        epoch, epochs = row["done"]
        if row["state"] != "runs" or not epochs:
            return "", "", ""
        since, first = row["began"]
        if epoch == first:
            return f"{epoch}/{epochs}", "", ""
        each = (row["at"] - since) / (epoch - first)
        speed = f"{row['images'] / each:.0f}" if row["images"] else ""
        left = max(0, each * (epochs - epoch) - (time.monotonic() - row["at"]))
        return f"{epoch}/{epochs}", speed, f"{int(left) // 60}:{int(left) % 60:02d}"
