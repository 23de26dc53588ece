"""Shared by all tests: a small data folder in the course's layout, the command line, a smoke run.

Tests and the processes that they start use one thread, or HW1_TEST_THREADS.
"""

import os
import shutil
import subprocess
import sys

os.environ.setdefault("MPLBACKEND", "agg")
os.environ["OMP_NUM_THREADS"] = os.environ.get("HW1_TEST_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow down other processes

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hw1lib import cli, cpus, paths, provenance
from hw1lib.data import landcover
from hw1lib.loops import device

FIRST = ("test_kill", "test_distributed", "test_run_steps", "test_notebooks", "test_benchmarks")  # the longest files


def pytest_collection_modifyitems(items):
    """Start with the longest files, and mark the tests that need the smoke run as slow."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    for item in items:
        if "smoke_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    """Name the processor at the end, as -q leaves out pytest's header."""
    cpu, (aten, onednn) = torch.device("cpu"), cpus.instruction_sets()
    used = f"ATen {aten}, oneDNN {onednn or 'unknown'}, {torch.get_num_threads()} threads"
    precision = str(device.dtype("auto", cpu) or torch.float32).removeprefix("torch.")
    terminalreporter.write_line(f"processor: {provenance.device_name(cpu)}: {used}, auto precision {precision}")


SIDE = 32  # of every image of the small course folder
OFFICE = ("Couch", "Alarm_Clock", "Mug")
POOL = ("100", "200")  # labels of the pool, which its file names do not show


def picture(seed, size=(SIDE, SIDE), colour=None):
    """Return a smooth random image with one prevailing colour, as a Pillow image."""
    random = np.random.default_rng(seed)
    base = random.integers(40, 216, 3) if colour is None else np.array(colour)
    small = base + random.integers(-30, 31, (4, 4, 3))
    image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BILINEAR)


def write_labelled(table, rows):
    """Write a CSV with columns id, filename, label."""
    frame = pd.DataFrame(rows, columns=["filename", "label"])
    frame.insert(0, "id", range(len(frame)))
    table.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(table, index=False)


def write_problem1(root, pool=12, train=4, val=2):
    """Write p1_data with a labelled pool, and `train` and `val` images of each of three classes."""
    rows = []
    for number in range(pool):
        name = f"{number + 1:05d}.jpg"
        rows.append((name, POOL[number % len(POOL)]))
        _save(picture(number), root / "mini" / "train" / name)
    write_labelled(root / "mini" / "train.csv", rows)
    for split, count in (("train", train), ("val", val)):
        rows = []
        for label, name in enumerate(OFFICE):
            for number in range(count):
                file = f"{name}{number + (100 if split == 'val' else 1):05d}.jpg"
                rows.append((file, label))
                colour = np.roll((200, 120, 50), label)
                seed = 1000 * label + number + (500 if split == "val" else 0)
                _save(picture(seed, colour=colour), root / "office" / split / file)
        write_labelled(root / "office" / f"{split}.csv", rows)


# One colour for each class, in the middle of its bin of the colour control.
GROUND = np.array(
    [(200, 40, 40), (216, 200, 72), (152, 120, 56), (24, 88, 24), (24, 40, 136), (232, 232, 216), (8, 8, 8)],
    dtype=np.uint8,
)


def write_tile(folder, number, classes):
    """Write a satellite tile whose colours tell its classes, and its mask."""
    _save(Image.fromarray(GROUND[classes]), folder / f"{number}_sat.jpg")
    Image.fromarray(landcover.encode(classes)).save(folder / f"{number}_mask.png")


def write_problem2(root, train=4, validation=3):
    """Write p2_data with tiles of 8 × 8 pixel blocks of all classes, numbered from 0001."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("validation", validation)):
        for number in range(count):
            blocks = random.permutation(np.arange((SIDE // 8) ** 2) % 7)
            blocks = blocks.reshape(SIDE // 8, SIDE // 8).astype(np.uint8)
            write_tile(root / split, f"{number + 1:04d}", blocks.repeat(8, 0).repeat(8, 1))


def _save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)


def save_oddly(folder):
    """Save two images of a folder again, one in greyscale and one in CMYK."""
    for path, mode in zip(sorted(folder.glob("*.jpg")), ("L", "CMYK")):
        Image.open(path).convert(mode).save(path)
        with Image.open(path) as saved:
            assert saved.mode == mode


@pytest.fixture(scope="session")
def small_course(tmp_path_factory):
    """A data root to copy, as copying is faster than encoding: 12 pool images, 12 + 6 Office images, 4 + 3 tiles."""
    root = tmp_path_factory.mktemp("small course")
    write_problem1(root / "p1_data")
    write_problem2(root / "p2_data")
    return root


@pytest.fixture
def course_data(small_course, tmp_path):
    """A copy of the small course folder, which the test may change."""
    return shutil.copytree(small_course, tmp_path / "hw1_data")


# --- the command line


def run(capsys, *words):
    """Run one command in this process; return its exit code, standard output and standard error."""
    capsys.readouterr()
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_paragraph(text):
    """Return standard error, which must be one paragraph and no traceback."""
    paragraph = text.strip()
    assert paragraph.startswith("hw1lib: ") and "\n" not in paragraph and len(paragraph) < 700, text
    return paragraph


def refused(capsys, *words):
    """Run a command that must end with 1; return its one paragraph."""
    code, _, text = run(capsys, *words)
    assert code == 1, text
    return one_paragraph(text)


def hw1lib(*words, build=None, **options):
    """Run a command in a process of its own."""
    environment = os.environ | ({"HW1_BUILD": str(build)} if build else {})
    command = [sys.executable, "-m", "hw1lib", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT, env=environment, **options)


def everything_of(folder):
    """Return {name: bytes} of a finished step's files, without run.json and the marker that holds its hash."""
    timed = ("run.json", "done.json")
    kept = (path for path in folder.iterdir() if path.name not in timed and not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in kept}


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """The build folder of the finished smoke run that all tests share, in a path with a space."""
    folder = tmp_path_factory.getbasetemp()
    build = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "smoke run"
    with filelock.FileLock(f"{build}.lock"):  # whichever process needs it first runs it
        if not (build / "smoke" / "report.pdf").exists():
            done = hw1lib("report", "--profile", "smoke", build=build)
            assert done.returncode == 0, done.stdout + done.stderr
    return build / "smoke"
