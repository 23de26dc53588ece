"""Benchmark harness: time alternatives in turns, report medians with their spread, and write tables."""

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
from hw1lib.loops import device, distributed, loop
from hw1lib.provenance import device_name

CPU = torch.device("cpu")
OUT = paths.ROOT / "report" / "build" / "bench"


def seconds(sides, repetitions=5, warm=1):
    """Time functions in turns, so that other programs slow all of them down alike.

    Args:
        sides: {name: function without arguments}.
        repetitions: number of turns.
        warm: number of untimed turns before.

    Returns:
        {name: list of seconds}.
    """
    times = {name: [] for name in sides}
    for turn in range(warm + repetitions):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if turn >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def row(times, ours="ours", per=1):
    """Return the cells of a table's row: each side's rate, as median ± half its range, and its ratio to ours.

    A ratio is the median over turns.

    Args:
        times: as returned by `seconds`.
        ours: name of the side that the others are compared with.
        per: number of images in one call.
    """
    cells = {}
    for name, durations in times.items():
        median = statistics.median(durations)
        cells[name] = f"{per / median:.3g} ± {100 * (max(durations) - min(durations)) / 2 / median:.0f} %"
    for name, durations in times.items():
        if name != ours:
            cells[f"× {name}"] = f"{statistics.median(a / b for a, b in zip(durations, times[ours])):.2f}"
    return cells


def training_steps(module, loss, batches, settings):
    """Train on the CPU as `make report` does, endlessly; yield after each step."""
    loss = distributed.data_parallel(module, loss, CPU)
    optimizer, scaler = loop.make_optimizer(module, settings), torch.amp.GradScaler(enabled=False)
    for epoch in itertools.count(1):
        yield from loop.train_one_epoch(loss, batches, optimizer, scaler, settings, CPU, epoch)


def in_new_process(run, *arguments):
    """Call run(*arguments) in a fork of this process, which must not have computed with torch yet.

    Returns:
        Its result if that is a float, or else its seconds; and its peak memory in MB.
    """
    read, write = os.pipe()
    if os.fork() == 0:
        start = time.perf_counter()
        result = run(*arguments)
        taken = result if isinstance(result, float) else time.perf_counter() - start
        os.write(write, json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        result = json.load(pipe)
    os.wait()
    return result


def write_tables(about, **tables_of):
    """Run a benchmark's command line: print its tables, and write them to report/build/bench.

    Args:
        about: docstring of the benchmark.
        tables_of: for each file name, a title and a function(tiny) that yields rows as dicts.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, one repetition: only whether it runs")
    tiny = parser.parse_args().tiny
    device.set_up(CPU)
    for name, (title, rows_of) in tables_of.items():
        rows, path = [], OUT / (f"{name}_tiny" if tiny else name)
        for cells in rows_of(tiny):
            print(*cells.values(), flush=True)
            rows.append(cells)
            table = pd.DataFrame(rows)
            text = f"## {title}\n\n{tables.markdown(table)}\n"
            files.write_text(path.with_suffix(".csv"), table.to_csv(index=False))  # after each row, in case it stops
            files.write_text(path.with_suffix(".md"), f"{text}\n{_machine()}\n")
        print(f"\n{text}", flush=True)


def _machine():
    memory = psutil.virtual_memory().total / 2**30
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "pillow"))
    return (
        f"{device_name(CPU)} ({' '.join(cpus.instruction_sets())}), {torch.get_num_threads()} threads, "
        f"{memory:.0f} GiB, {platform.platform()}, Python {platform.python_version()}, {packages}, "
        f"{time.strftime('%Y-%m-%d')}"
    )
