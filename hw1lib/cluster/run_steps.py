"""Run the steps of a report on Dask workers.

Each step runs as `hw1lib run STEP` in a process of its own, so a crash costs one step, and memory and devices are
released. The process writes its result into the build folder, which all machines must see; nothing else is transferred.
"""

import contextlib
import functools
import os
import platform
import secrets
import signal
import sys
import time

import distributed

from hw1lib import cpus, paths, processes, progress, provenance
from hw1lib.cluster import schedule
from hw1lib.cluster.workers import connect
from hw1lib.errors import UserError

WORKER_TIMEOUT = 600  # seconds to wait for the first worker
SHUTDOWN_GRACE = 5  # seconds in which a worker learns that its job ends
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # Dask sets them to 1


def run(book, where):
    """Run all steps that are not done, each as soon as the steps that it builds on are.

    Args:
        book: workbook.Workbook.
        where: local:N, the address of a scheduler such as tls://host:8786, or a file such as my-cluster.yaml.

    Raises:
        UserError: a step failed, or the workers cannot run the steps; finished steps are kept.
    """
    planned = {label: (steps, name) for label, steps, name in book.planned()}
    tasks = schedule.remaining(book, startup=1.0)
    priorities = schedule.path_lengths(tasks)
    with connect(where, book) as client, shared_folders(book) as folders:
        expected, futures = snapshot(*folders), {}
        kind, _, count = where.partition(":")
        share = cpus.share(int(count)) if kind == "local" else 0  # 0: the worker's own number
        check_workers(client, book, folders, expected)
        topic = folders[0].name
        client.subscribe_topic(topic, lambda event: progress.show(f"  {event[1]}"))
        try:
            for label, (_, upstream) in tasks.items():
                steps, name = planned[label]
                step, key = steps.step(name), f"{label} {steps.key(name)} {secrets.token_hex(3)}"
                gpus = _gpu_count(book, step)
                futures[label] = client.submit(
                    work, label, [sys.executable, *steps.command(name)], book.profile.threads or share, gpus,
                    step.images, folders, expected, *(futures[other] for other in upstream), key=key, pure=False,
                    priority=priorities[label], resources={"GPU": gpus} if gpus else {},
                )  # fmt: skip
            errors = _wait(futures)
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise UserError(
                f"The scheduler of {where} is gone ({type(error).__name__}). Run the same command again: finished "
                "steps are kept, and unfinished ones resume from their checkpoints."
            ) from error
    if errors:
        (label, error), *others = errors.items()
        also = f" Also failed: {', '.join(other for other, _ in others)}." if others else ""
        raise UserError(f"Step {label} failed: {error}{also} All steps that do not build on a failed one are finished.")


# --- the machines


@contextlib.contextmanager
def shared_folders(book):
    """Yield the paths that all machines must see: a marker in the build folder, the data, and the checkout."""
    book.out.mkdir(parents=True, exist_ok=True)
    marker = book.out / f".seen-{secrets.token_hex(8)}"  # unique, as another report may use the same folder
    marker.touch()
    try:
        yield marker, book.root, paths.ROOT
    finally:
        marker.unlink(missing_ok=True)


def snapshot(marker, data, root):
    """Return what must be the same on all machines, {name: value}: folders, code and package versions."""
    return {
        "build folder": str(marker.parent) if marker.exists() else "not found",
        "data folder": str(data) if data.is_dir() else "not found",
        "code of hw1lib": provenance.code(root)[:8],
        **provenance.versions(),
    }


def difference(folders, expected):
    """Return how this machine differs from the one that `expected` describes; empty if it does not."""
    actual = snapshot(*folders)
    for name, value in expected.items():
        if actual.get(name) != value:
            return (
                f"on {platform.node()} has a different {name}: {actual.get(name)} instead of {value}. All machines "
                "need the same packages and, on a shared disk, the same checkout, build folder and data. If hw1lib "
                "was edited meanwhile, run the same command again."
            )
    return ""


def check_workers(client, book, folders, expected):
    """Wait for a worker, and compare all connected ones with this process; later ones are compared before each step.

    Raises:
        UserError: no worker connects, one differs, or their GPUs do not suit the steps.
    """
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError as error:
        raise UserError(
            f"No worker connected within {WORKER_TIMEOUT} s. Check the batch queue and the logs of its jobs."
        ) from error
    workers = client.scheduler_info(n_workers=-1)["workers"]
    offered = max(worker["resources"].get("GPU", 0) for worker in workers.values())
    needed = max((_gpu_count(book, s.step(n)) for _, s, n in book.planned() if s.status(n) != "done"), default=0)
    if offered and book.profile.device == "auto" and book.device.type == "cpu":
        raise UserError(
            "Workers offer GPUs, but this process sees none, so its steps would not use them. Run this command on a "
            "machine with a GPU, or give --device cpu."
        )
    if needed > offered:
        raise UserError(
            f"A step on {book.device} needs a worker with --resources GPU={needed:.0f}, but the largest offers "
            f"{offered:.0f}. Start such workers, lower `processes`, or give --device cpu."
        )
    for address, problem in client.run(difference, folders, expected).items():
        if problem:
            raise UserError(f"Worker {address} {problem}")


# --- the steps


def _gpu_count(book, step):
    return step.processes if step.trains and book.device.type != "cpu" else 0


class Failed(Exception):
    """A step ended with an error: its label, and the error's text."""


def work(label, command, threads, gpus, images, folders, expected, *upstream):
    """Run a step in a process on this worker, and send its progress to the client as lines of text.

    Args:
        label: name of the step, with its seed if that is not the report's own.
        command: command line of the process, a list.
        threads: number of CPU threads; 0 for the worker's own.
        gpus: number of GPUs.
        images: number of images in an epoch, for the speed.
        folders, expected: as yielded by `shared_folders` and returned by `snapshot`.
        upstream: results of the steps that it builds on, so that Dask waits for them.

    Raises:
        Failed: the process ended with an error.
    """
    worker = distributed.get_worker()
    show = functools.partial(worker.log_event, folders[0].name)
    if problem := difference(folders, expected):
        raise Failed(label, f"worker {worker.name} {problem}")
    show(f"{label}: runs on worker {worker.name} on {platform.node()}")
    if gpus and not threads:  # Dask has set one thread, too few to load images for a GPU
        threads = cpus.share(worker.state.nthreads, threads=False)
    environment = os.environ | (dict.fromkeys(THREADS, str(threads)) if threads else {})
    with _reserve_gpus(worker, gpus) as visible:
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        with progress.follow(epoch_printer(label, images, show)) as (variables, errors):
            code, output = processes.run(command, environment | variables, cwd=folders[-1])
    if code == -signal.SIGTERM:
        time.sleep(SHUTDOWN_GRACE)
        if worker.status.name != "running":  # its job ends; another worker takes the step
            raise distributed.Reschedule
    if code < 0:
        raise Failed(label, f"it was killed by {signal.Signals(-code).name}; memory may have run out.")
    if code:
        raise Failed(label, (errors[0] if errors else output)[-2000:])


def epoch_printer(label, images, show):
    """Return a function that shows a progress record, from the second epoch on with images per second and time left."""
    first = []

    def on_record(record):
        line, epoch, now = progress.relabel(record, label)["line"], record.get("epoch"), time.monotonic()
        if epoch:
            first[:] = first or [epoch, now]
        if epoch and epoch > first[0]:
            seconds = (now - first[1]) / (epoch - first[0])
            minutes, left = divmod(round(seconds * (record["epochs"] - epoch)), 60)
            line += (f"  {images / seconds:.0f} images/s" if images else "") + f"  {minutes}:{left:02d} left"
        show(line)

    return on_record


@contextlib.contextmanager
def _reserve_gpus(worker, count):
    """Reserve `count` GPUs of this worker for one step; yield them as CUDA_VISIBLE_DEVICES."""
    free = vars(worker).setdefault("hw1lib_gpus", _gpus_of(worker)) if count else []
    reserved = [free.pop(0) for _ in free[:count]]
    try:
        yield ",".join(reserved)
    finally:
        free[:0] = reserved


def _gpus_of(worker):
    """Return the numbers or UUIDs of a worker's GPUs, a list of str."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    is_local = isinstance(worker.name, int) and gpus  # workers of local:N share the GPUs of this machine
    return [gpus[worker.name % len(gpus)]] if is_local else gpus


def _wait(futures):
    """Wait for all steps; return {label: error message} of those that failed, without those that depend on them."""
    labels, errors = {future.key: label for label, future in futures.items()}, {}
    for future in distributed.as_completed(futures.values()):
        label = culprit = labels[future.key]
        if future.status in ("cancelled", "lost"):
            raise distributed.CancelledError(label)
        if future.status == "finished":
            progress.show(f"  {label}: done")
            continue
        match future.exception():
            case Failed() as error:
                culprit, text = error.args
            case distributed.scheduler.KilledWorker() as error:
                culprit, deaths = labels[error.task], error.allowed_failures + 1
                text = f"{deaths} workers died while they ran it; memory may have run out."
            case error:
                text = f"{type(error).__name__}: {error}"
        if culprit == label:
            errors[label] = text
        progress.show(f"  {label}: " + ("failed" if culprit == label else f"not run: {culprit} failed"))
    return errors
