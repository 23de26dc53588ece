"""What all benchmarks share: sides that take turns, medians with spread, the machine, tables on disk."""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version

import pandas as pd
import psutil
import torch

from hw1lib import files, paths
from hw1lib.chapters import words
from hw1lib.pipeline import _device_name

OUT = paths.ROOT / "report" / "build" / "bench"


def seconds(sides, repetitions=5, warm=1):
    """How long each side takes, the sides in turns, so that the machine's moods hit all of them alike.

    Args:
        sides: dict from a name to a function without arguments.
        repetitions: of each.
        warm: further ones before, not counted.

    Returns:
        Dict from name to a sorted list of seconds.
    """
    found = {name: [] for name in sides}
    for turn in range(warm + repetitions):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if turn >= warm:
                found[name].append(time.perf_counter() - started)
    return {name: sorted(taken) for name, taken in found.items()}


def row(found, ours="ours", per=1):
    """One row of a table: what each side does a second, with its spread, and how many times as fast ours is.

    Args:
        found: what `seconds` gave.
        ours: name of our side; all others get a ratio.
        per: images of one call.
    """
    cells = {}
    for name, taken in found.items():
        middle = statistics.median(taken)
        cells[name] = f"{per / middle:.3g} ± {100 * (taken[-1] - taken[0]) / 2 / middle:.0f} %"
    mine = statistics.median(found[ours])
    ratios = {f"× {name}": round(statistics.median(taken) / mine, 2) for name, taken in found.items() if name != ours}
    return cells | ratios


def keep(name, title, rows):
    """Prints a table and writes it, with the machine, to report/build/bench/."""
    table = pd.DataFrame(rows)
    text = f"## {title}\n\n{words.markdown(table)}\n"
    print(f"\n{text}", flush=True)
    files.write_text(OUT / f"{name}.csv", table.to_csv(index=False))
    files.write_text(OUT / f"{name}.md", f"{text}\n{machine()}\n")


def machine():
    """The machine as a line of text."""
    has = ", ".join(name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name)
    memory = psutil.virtual_memory().total / 2**30
    device = torch.device("cpu")
    packages = " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "numpy", "pillow"))
    return (
        f"{_device_name(device)} ({has or 'no bfloat16'}), {torch.get_num_threads()} threads, {memory:.0f} GiB, "
        f"{platform.platform()}, Python {platform.python_version()}, {packages}, {time.strftime('%Y-%m-%d')}"
    )


def peak_memory(run, *arguments):
    """Highest resident memory of a new process that calls run(*arguments), in MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        run(*arguments)
        import resource

        os.write(write, json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return found


def arguments(about):
    """Whether this run is a tiny one, which only shows that the benchmark runs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, one repetition: only whether it runs")
    return parser.parse_args().tiny
