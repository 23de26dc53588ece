"""Runs the steps of a report on workers, on this machine or on many (Dask distributed).

Each step is a process of its own, `hw1lib run STEP`, so a crash costs one step, and memory and devices come back. What
it writes lies in the build folder, on a file system that all workers see; nothing else travels.
"""

import contextlib
import functools
import os
import platform
import secrets
import shutil
import signal
import sys
import threading
import time

from hw1lib import cpus, paths, processes, progress, provenance
from hw1lib.cluster import schedule
from hw1lib.cluster.display import Board, images_of
from hw1lib.cluster.workers import connect
from hw1lib.errors import UserError

FREE_BYTES = 2e9  # that results need on their disk
WAIT_MESSAGE_AFTER = 10  # seconds without a worker
WORKER_TIMEOUT = 600  # seconds until the first worker has to be there
SHUTDOWN_GRACE = 5  # seconds until a worker knows that its job ends
RESERVING = threading.Lock()  # of a worker's devices, as steps on it are threads
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # which Dask sets to 1


def run(book, where):
    """Run all steps that are not done, each as soon as those that it builds on are.

    Args:
        book: workbook.Workbook.
        where: local:N, the address of a scheduler such as tls://host:8786, or a file cluster.yaml.

    Raises:
        UserError: a step failed, or the workers cannot do it; what was finished is kept.
    """

    distributed = _distributed()
    steps = {label: (steps, name) for label, steps, name in book.planned()}
    tasks = schedule.tasks(book, [label for label, (its, name) in steps.items() if its.status(name) != "done"])
    with connect(where, book) as client, _marked(book) as mine, Board(client, mine["token"]) as board:
        check(client, book, mine)
        futures, threads = {}, _threads(book, where)
        first = schedule.levels(schedule.begun(tasks, 1.0))  # a second, where nothing was measured
        try:
            for label, (_, before) in tasks.items():
                its, name = steps[label]
                devices = _devices(book, its.step(name))
                board.add(label, images_of(book.data, its.step(name)))
                words = [sys.executable, *its.command(name)]
                futures[label] = client.submit(
                    work, label, words, threads, devices, mine, *[futures[other] for other in before],
                    key=f"{label} {its.key(name)} {secrets.token_hex(3)}", pure=False, priority=first[label],
                    resources={"GPU": devices} if devices else {},
                )  # fmt: skip
            failed = _finish(distributed, futures, board)
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise UserError(
                f"The scheduler of {where} is gone ({type(error).__name__}). Nothing that was finished is lost, and "
                "half done steps have their checkpoints: run the same command again."
            ) from error
    if failed:
        (label, said), *others = failed.items()
        more = f" So did {', '.join(other for other, _ in others)}." if others else ""
        raise UserError(f"Step {label} failed: {said}{more} Everything that does not build on it is finished.")


def _distributed():
    """Import Dask; the handler that dask-jobqueue sets for SIGINT at its import, which exits without a word, goes."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        import cryptography  # noqa: F401
        import dask_jobqueue  # noqa: F401
        import distributed
        import yaml  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "Workers need Dask: .venv/bin/python -m pip install -r requirements-cluster.txt, then run the same command "
            "again. Without --cluster all steps run here, one after the other."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    return distributed


# --- what is checked before anything runs


@contextlib.contextmanager
def _marked(book):
    """What this process sees, beside a mark in the build folder that workers must see, too."""
    book.out.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    mark = book.out / f".seen-{token}"  # others may work on the same folder
    mark.write_text(token)
    try:
        yield look(mark, book.root, paths.ROOT)
    finally:
        mark.unlink(missing_ok=True)


def check(client, book, mine):
    """Holds every worker that is there against this process; those that come later are when they get a step.

    Args:
        mine: as of `look`.

    Raises:
        UserError: one of them differs; it is named. Or there is none, or none that offers a GPU, or one does in vain.
    """
    try:
        client.wait_for_workers(1, timeout=WAIT_MESSAGE_AFTER)
    except TimeoutError:
        print(f"Waiting for the first worker, {WORKER_TIMEOUT // 60} minutes at most", flush=True)
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError as error:
        raise UserError(
            f"No worker came within {WORKER_TIMEOUT} s. A batch system's queue, or the logs of its jobs, may say why."
        ) from error
    offers = [worker["resources"].get("GPU", 0) for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    undone = [steps.step(name) for _, steps, name in book.planned() if steps.status(name) != "done"]
    needs = max((_devices(book, step) for step in undone), default=0)
    if max(offers) and book.profile.device == "auto" and book.device.type == "cpu":
        raise UserError(
            "Workers offer GPUs, but this process sees none and would ask for none. Start it where there is one, in a "
            "job of its own, or give --device cpu."
        )
    if needs > max(offers):
        raise UserError(
            f"A step on {book.device} needs a worker with --resources GPU={needs:.0f}, but the largest offers "
            f"{max(offers):.0f}. Start workers so, lower `processes`, or give --device cpu."
        )
    for worker, theirs in client.run(look, *mine["places"]).items():
        if wrong := difference(mine, theirs):
            raise UserError(f"Worker {worker} on {theirs['host']} {wrong}")


def difference(mine, theirs):
    """What a worker sees otherwise than this process: the rest of a sentence, empty where nothing is."""
    mark, data, root = mine["places"]
    if theirs["token"] != mine["token"]:
        return f"does not see the build folder {mark.parent}; --out must be on a shared disk."
    if not theirs["data"]:
        return f"does not see the data in {data}; it must be on a shared disk."
    if theirs["code"] != mine["code"]:
        return (
            f"has other code in {root / 'hw1lib'} than this process began with ({theirs['code']}, not {mine['code']}). "
            "Where a file was edited meanwhile, run the same command again."
        )
    for name, needed in mine["packages"].items():
        if (found := theirs["packages"].get(name)) != needed:
            has = f"has {name} {found or 'not at all'}, but this process {needed}."
            return f"{has} All need the same: let workers run {sys.executable}."
    room, needed = theirs["room"] / 1e9, FREE_BYTES / 1e9
    return f"has {room:.1f} GB left in {mark.parent}; results need {needed:.0f}." if room < needed else ""


def look(mark, data, root):
    """What a process sees, as plain data: the mark's text, the data, a hash of the code, packages, room on the disk."""
    token = mark.read_text() if mark.is_file() else ""
    room = shutil.disk_usage(mark.parent).free if token else 0
    return {
        "token": token,
        "data": data.is_dir(),
        "room": room,
        "code": provenance.code(root)[:8],
        "packages": provenance.versions(),
        "host": platform.node(),
        "places": (mark, data, root),
    }


# --- steps


def _devices(book, step):
    """How many GPUs a step works on."""
    if book.device.type == "cpu" or not step.trains:
        return 0
    return step.processes


def _threads(book, where):
    """Return the threads of each step: the setting, or a local worker's share of the CPUs; 0: the worker's own."""
    kind, _, count = where.partition(":")
    return book.profile.threads or (cpus.share(int(count)) if kind == "local" else 0)


class Failed(Exception):
    """A step that ended by itself with an error: its label, and the error."""


def work(label, words, threads, devices, mine, *after):
    """Run a step on a worker, and log its progress as events."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    place = f"{worker.name} on {platform.node()}"
    if wrong := difference(mine, look(*mine["places"])):
        raise Failed(label, f"worker {place} {wrong}")
    topic, event = mine["token"], {"label": label, "place": place, "record": None}
    worker.log_event(topic, event)
    if devices and not threads:  # Dask has set one thread, but loading images for a GPU takes more
        threads = cpus.share(worker.state.nthreads, threads=False)
    environment = os.environ | (dict.fromkeys(THREADS, str(threads)) if threads else {})
    with _own_devices(worker, devices) as own:
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        try:
            log = functools.partial(_log, worker, topic, event)
            with progress.Follower(log) as records:
                code, output = processes.run(words, environment | records.environment, cwd=mine["places"][-1])
        except OSError as error:
            raise Failed(label, f"worker {place}: {error}") from error
    if code == -signal.SIGTERM:
        time.sleep(SHUTDOWN_GRACE)
        if worker.status.name != "running":  # its job ends: elsewhere
            raise Reschedule
    if code < 0:
        raise Failed(label, f"it was ended by {signal.Signals(-code).name}; memory may have run out.")
    if code:
        raise Failed(label, (records.error or output)[-2000:])
    return label


def _log(worker, topic, event, record):
    worker.log_event(topic, event | {"record": record})


@contextlib.contextmanager
def _own_devices(worker, count):
    """Reserve `count` GPUs of this worker: their numbers as in CUDA_VISIBLE_DEVICES."""
    if not count:
        yield []
        return
    with RESERVING:
        taken = _taken(worker, count)
    try:
        yield taken
    finally:
        with RESERVING:
            worker.hw1lib_devices = taken + worker.hw1lib_devices


def _taken(worker, count):
    if "hw1lib_devices" not in vars(worker):
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        all_ = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
        here = isinstance(worker.name, int) and all_  # workers of local:N share this machine's
        worker.hw1lib_devices = [all_[worker.name % len(all_)]] if here else all_
    taken, worker.hw1lib_devices = worker.hw1lib_devices[:count], worker.hw1lib_devices[count:]
    return taken


def _finish(distributed, futures, board):
    """Wait for all steps; return those that failed by themselves: {label: error}."""
    labels, failed = {future.key: label for label, future in futures.items()}, {}
    for future in distributed.as_completed(futures.values()):
        label = labels[future.key]
        if future.status in ("cancelled", "lost"):
            raise distributed.CancelledError(label)
        if future.status == "finished":
            board.end(label, "done")
            continue
        error = future.exception()
        killed = isinstance(error, distributed.scheduler.KilledWorker)
        culprit = labels[error.task] if killed else error.args[0] if isinstance(error, Failed) else label
        if culprit != label:
            board.end(label, f"not run: {culprit} failed")
            continue
        failed[label] = error.args[1] if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        if killed:
            failed[label] = f"{error.allowed_failures + 1} workers died that had it to do; memory may have run out."
        board.end(label, "failed")
    return failed
