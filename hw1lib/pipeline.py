"""Runs the notebooks headless in their order, then builds the report from the stored results."""

import dataclasses
import datetime
import hashlib
import json
import logging
import platform
import shutil
import subprocess
import sys
import textwrap
import time
import tomllib
import warnings
from importlib.metadata import version

import papermill
import torch
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hw1lib import answers, gallery, paths, profiles, store
from hw1lib.errors import UserError
from hw1lib.results import figures, report, tables
from hw1lib.workbook import Workbook

NOTEBOOKS = {  # in their order, with the problem that each belongs to; 0: both
    "00_data": 0,
    "01_pretraining": 1,
    "02_finetuning": 1,
    "03_embeddings": 1,
    "04_segmentation": 2,
    "05_segment_anything": 2,
}
SHOWS = {  # the steps that a notebook shows
    "00_data": (),
    "01_pretraining": ("pretrain", "pretrain-supervised"),
    "02_finetuning": tuple(
        answers.step_of(row) for row in (*profiles.SETTINGS, *profiles.CONTROLS)
    ),
    "03_embeddings": ("embed",),
    "04_segmentation": tuple(f"segment-{m}" for m in (*profiles.SEGMENTERS, "colour")),
    "05_segment_anything": ("everything",),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for; the parameters of every notebook."""

    profile: str = "demo"
    data_root: str = ""
    out: str = ""
    settings: dict = dataclasses.field(default_factory=dict)

    def workbook(self):
        return Workbook(self.profile, self.data_root, self.out, self.settings)


def run(request, only=None):
    """Runs what is not done, through the notebooks, and builds the report.

    Args:
        request: Request.
        only: 1 or 2 for one problem alone.

    Returns:
        The build folder.
    """
    started = time.time()
    book = request.workbook()
    if only == 1:
        book.data = book.steps.data = dataclasses.replace(book.data, problem2=None)
    if only == 2:
        book.data = book.steps.data = dataclasses.replace(book.data, problem1=None)
    sys.stdout.reconfigure(line_buffering=True)  # lines come at once, into a log file, too
    print(f"Profile {book.profile.name}: {book.profile.about}")
    print(f"Data    {book.root}\nBuild   {book.out}\nDevice  {book.device}")
    states = [book.steps.status(step) for step in book.steps.all]
    undone = len(states) - states.count("done")
    print(f"Steps   {len(states)}: {states.count('done')} done, {undone} to run")
    for name, problem in NOTEBOOKS.items():
        if problem == 0 or _has(book)[problem]:
            _execute(name, request, book)
    write_report(book, started)
    print(f"\nReport  {book.out / 'report.html'}\n        {book.out / 'report.pdf'}")
    return book.out


def _has(book):
    return {1: book.data.problem1 is not None, 2: book.data.problem2 is not None}


def _execute(name, request, book):
    """Executes one notebook, unless its executed copy still shows what it would show now."""
    source = paths.NOTEBOOKS / f"{name}.ipynb"
    target = book.out / "notebooks" / f"{name}.ipynb"
    stamp = book.out / "notebooks" / f".{name}.json"
    made_of = _made_of(source, name, book)
    if target.is_file() and stamp.is_file() and store.read_json(stamp) == made_of:
        print(f"\n{name}: nothing to do")
        return
    print(f"\n{name}")
    started = time.time()
    _listen()
    target.parent.mkdir(parents=True, exist_ok=True)
    parameters = dataclasses.asdict(request) | {"out": str(book.out)}
    if request.data_root:
        parameters["data_root"] = str(book.root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own, about its dependencies
            papermill.execute_notebook(
                str(source), str(target), parameters, kernel_name="python3",
                log_output=True, progress_bar=False, cwd=str(paths.NOTEBOOKS),
                extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
            )
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(str(error.evalue)) from error
        raise UserError(
            f"Notebook {name} stopped in cell {error.exec_count} with {error.ename}: "
            f"{error.evalue}. The executed copy {target} shows where. This is likely a fault of "
            "the workbook; what was finished before is kept."
        ) from error
    except DeadKernelError as error:
        raise UserError(
            f"The kernel of notebook {name} died, as it does when memory runs out or it is "
            "killed. Run the same command again: finished steps are kept, half done ones go on "
            "from their last checkpoint. For less memory lower a batch size, for example --set "
            "fcn32s.batch_size=4."
        ) from error
    undone = [s for s in SHOWS[name] if s in book.steps.all and book.steps.status(s) != "done"]
    if undone:  # an output notebook alone proves nothing
        raise UserError(
            f"Notebook {name} ended, but {', '.join(undone)} did not finish. Run it again."
        )
    store.write_json(stamp, made_of)
    print(f"{name}: {time.time() - started:.0f} s")


def _made_of(source, name, book):
    """What an executed notebook shows: its own source, the library's, and its steps."""
    total = hashlib.sha256()
    for path in sorted((paths.ROOT / "hw1lib").rglob("*.py")):
        total.update(path.read_bytes())
    cells = [cell["source"] for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]]
    keys = {s: book.steps.key(s) for s in SHOWS[name] if s in book.steps.all}
    return {"source": store.key_of(cells), "library": total.hexdigest(), "steps": keys}


def _listen():
    """Lets papermill's log carry what the cells print, and nothing else."""
    log = logging.getLogger("papermill")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_printed_by_cell)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _printed_by_cell(record):
    own = ("Executing", "Input Notebook", "Output Notebook", "Ending", "Working dir", "<IPython")
    text = record.getMessage()
    record.msg, record.args = textwrap.indent(text.rstrip("\n"), "  "), ()
    return bool(text.strip()) and not text.startswith(own)


# --- the report --------------------------------------------------------------------------


def write_report(book, started):
    """Writes tables, metrics.json, run.json, timings.csv and the three forms of the report."""
    out, has = book.out, _has(book)
    for problem, names in answers.SAVED.items():
        for name in names if has[problem] else ():
            tables.write_csv(out / "tables" / f"{name}.csv", answers.TABLES[name](book))
    done = {name: book.result(name) for name in book.steps.all}
    store.write_json(out / "metrics.json", _metrics(book, done))
    tables.write_csv(out / "timings.csv", answers.timings(book))
    _draw_timing(book)
    store.write_json(out / "run.json", _run(book, done, started))
    report.write(out, paths.TEMPLATE, _book(book, has))


def _draw_timing(book):
    with figures.style():
        drawn = figures.timing(answers.timings(book))
        for ending in ("png", "pdf"):
            figures.save(drawn, book.out / "figures" / f"timing-steps.{ending}")


def _metrics(book, done):
    """Every number of the report but times: free of host, date and version."""
    return {
        "profile": book.profile.name,
        "settings": dataclasses.asdict(book.profile) | {"device": None},
        "steps": {name: {"key": r.key, **r.metrics} for name, r in done.items()},
    }


def _run(book, done, started):
    """Where and how this report came about."""
    names = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "matplotlib", "papermill")
    return {
        "profile": book.profile.name,
        "data_root": str(book.root),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds_total": round(time.time() - started, 1),
        "seconds": {name: result.run["seconds"] for name, result in done.items()},
        "device": str(book.device),
        "device_name": _device_name(book.device),
        "threads": torch.get_num_threads(),
        "host": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in names},
        "commit": _commit(),
    }


def _device_name(device):
    if device.type == "cpu":
        try:
            lines = open("/proc/cpuinfo", encoding="utf-8").read().splitlines()
        except OSError:
            return platform.processor() or "CPU"
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores" if names else "CPU"
    return torch.get_device_module(device).get_device_name(device)


def _commit():
    """The commit that the code is at, with + where files differ from it; empty outside git."""
    def git(*words):
        done = subprocess.run(
            ["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + "+" if commit and git("status", "--porcelain") else commit
    except FileNotFoundError:
        return ""


def _book(book, has):
    def fenced(name):
        return f"```\n{answers.CODE[name](book)}\n```"

    facts = {
        "about": about(),
        "profile": book.profile,
        "run": store.read_json(book.out / "run.json"),
        "is_sample": book.is_sample,
        "networks": answers.networks(),
    }
    return report.Book(
        table=lambda name: answers.printed(book, name),
        say=lambda name: answers.SENTENCES[name](book),
        code=fenced,
        note=_note,
        figure_folder=book.out / "figures",
        has=has,
        facts=facts,
    )


def about():
    """Name, student ID and title, from report/about.toml."""
    try:
        given = tomllib.loads(paths.ABOUT.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{paths.ABOUT} cannot be read: {error}. It needs title, name and id.") \
            from error
    missing = {"title", "name", "id"} - set(given)
    if missing:
        raise UserError(f"{paths.ABOUT} lacks {', '.join(sorted(missing))}.")
    return {key: tables.escape(value) for key, value in given.items()}


def _note(question):
    """The author's own paragraphs on a question, from report/notes/<question>.md, marked so."""
    path = paths.NOTES / f"{question}.md"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8").strip().replace("<", "&lt;")
    quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    return f"> **The author's note.**\n>\n{quoted}"


def publish(request):
    """Copies report.md, its figures and its numbers to report/<profile>/, for a code host.

    Returns:
        That folder.
    """
    book = request.workbook()
    source, target = book.out, paths.REPORT / book.profile.name
    if not (source / "report.md").is_file():
        raise UserError(f"There is no report in {source}. Make it first: make report.")
    shutil.rmtree(target, ignore_errors=True)
    (target / "figures").mkdir(parents=True)
    shutil.copytree(source / "tables", target / "tables")
    for name in ("metrics.json", "run.json", "timings.csv"):
        shutil.copy(source / name, target / name)
    shutil.copy(source / "report.md", target / "README.md")
    for figure in sorted((source / "figures").glob("*.png")):
        shutil.copy(figure, target / "figures" / figure.name)
    return target


def export(request, names, formats, dpi, into):
    """Writes figures in other formats.

    Args:
        names: of gallery.FIGURES; empty for all that the data allows.
        formats: of png, pdf, svg.
        dpi: of PNG.
        into: folder.

    Returns:
        The written paths.
    """
    book = request.workbook()
    has = _has(book)
    known = (gallery.PROBLEM1 if has[1] else {}) | (gallery.PROBLEM2 if has[2] else {})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no figure {unknown[0]!r}; there are: {', '.join(known)}.")
    written = []
    for name in names or known:
        with figures.style():
            drawn = known[name](book)
            for kind in formats:
                path = into / f"{name}.{kind}"
                figures.save(drawn, path, dpi)
                written.append(path)
    return written
