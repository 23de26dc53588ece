"""What all benchmarks share: sides that take turns, medians with spread, the machine, tables on disk."""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import time
from importlib.metadata import version

import pandas as pd
import psutil
import torch

from hw1lib import cpus, files, paths
from hw1lib.chapters import tables
from hw1lib.loops import distributed, loop
from hw1lib.provenance import device_name

OUT = paths.ROOT / "report" / "build" / "bench"


def seconds(sides, repetitions=5, warm=1):
    """How long each side takes, the sides in turns, so that the machine's moods hit all of them alike.

    Args:
        sides: dict from a name to a function without arguments.
        repetitions: of each.
        warm: further ones before, not counted.

    Returns:
        Dict from name to its seconds, turn by turn.
    """
    found = {name: [] for name in sides}
    for turn in range(warm + repetitions):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if turn >= warm:
                found[name].append(time.perf_counter() - started)
    return found


def row(found, ours="ours", per=1):
    """One row of a table: what each side does a second, the median with half its range, and the median ratio.

    Ratios are taken turn by turn, as other guests of a machine slow both sides of a turn alike.

    Args:
        found: what `seconds` gave.
        ours: name of our side; all others get a ratio.
        per: images of one call.
    """
    cells = {}
    for name, taken in found.items():
        middle = statistics.median(taken)
        cells[name] = f"{per / middle:.3g} ± {100 * (max(taken) - min(taken)) / 2 / middle:.0f} %"
    for name, taken in found.items():
        if name != ours:
            ratio = statistics.median(other / mine for other, mine in zip(taken, found[ours]))
            cells[f"× {name}"] = f"{ratio:.2f}"
    return cells


def training_steps(module, loss, batches, settings):
    """The steps of a training as `make report` takes them, on the CPU and without end: yields after each."""
    loss = distributed.data_parallel(module, loss, torch.device("cpu"))
    optimizer, scaler = loop.make_optimizer(module, settings), torch.amp.GradScaler(enabled=False)
    for epoch in itertools.count(1):
        yield from loop.train_one_epoch(loss, batches, optimizer, scaler, settings, torch.device("cpu"), epoch)


def keep(name, title, rows):
    """Prints a table and writes it, with the machine, to report/build/bench/."""
    table = pd.DataFrame(rows)
    text = f"## {title}\n\n{tables.markdown(table)}\n"
    print(f"\n{text}", flush=True)
    files.write_text(OUT / f"{name}.csv", table.to_csv(index=False))
    files.write_text(OUT / f"{name}.md", f"{text}\n{machine()}\n")


def machine():
    """The machine as a line of text."""
    memory = psutil.virtual_memory().total / 2**30
    device = torch.device("cpu")
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "pillow"))
    return (
        f"{device_name(device)} ({' '.join(cpus.instruction_sets())}), {torch.get_num_threads()} threads, "
        f"{memory:.0f} GiB, {platform.platform()}, Python {platform.python_version()}, {packages}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


def alone(run, *arguments):
    """Calls run(*arguments) in a process of its own, forked from this one, which must not have computed with torch.

    Returns:
        What run returned, where that is a number, else its seconds; and the highest resident memory in MB.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        started = time.perf_counter()
        found = run(*arguments)
        taken = found if isinstance(found, float) else time.perf_counter() - started
        os.write(write, json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.load(pipe)
    os.wait()
    return found


def arguments(about):
    """Whether this run is a tiny one, which only shows that the benchmark runs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, one repetition: only whether it runs")
    return parser.parse_args().tiny
