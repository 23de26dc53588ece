"""Runs the notebooks headless in their order, then builds the report from the stored results."""

import builtins
import dataclasses
import hashlib
import json
import logging
import os
import sys
import textwrap
import time
import warnings

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from hw1lib import answers, files, handin, paths, profiles, store
from hw1lib.errors import UserError, remedy
from hw1lib.steps import check_of
from hw1lib.workbook import ONLY, Workbook

NOTEBOOKS = {  # in their order, with the problem that each belongs to; 0: both
    "00_data": 0,
    "01_pretraining": 1,
    "02_finetuning": 1,
    "03_embeddings": 1,
    "04_segmentation": 2,
    "05_segment_anything": 2,
}
SEGMENT = tuple(f"segment-{m}" for m in (*profiles.SEGMENTERS, "colour"))
SHOWS = {  # the steps that a notebook shows
    "00_data": tuple(check_of(problem) for problem in (1, 2)),
    "01_pretraining": ("pretrain", "pretrain-supervised"),
    "02_finetuning": tuple(answers.step_of(row) for row in answers.rows()),
    "03_embeddings": ("embed",),
    "04_segmentation": SEGMENT,
    "05_segment_anything": ("everything", *SEGMENT),
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
    os.environ[ONLY] = str(only or "")  # the kernels inherit it
    book = request.workbook()
    sys.stdout.reconfigure(line_buffering=True)  # lines come at once, into a log file, too
    print(f"Profile {book.profile.name}: {book.profile.about}")
    print(f"Data    {book.root}\nBuild   {book.out}\nDevice  {book.device}")
    undone = _print_plan(book)
    for name, problem in NOTEBOOKS.items():
        if problem == 0 or book.has[problem]:
            _execute(name, request, book)
        if problem == 0:
            _print_weaknesses(book)
    handin.write(book, started, ran=bool(undone))
    print(f"\nReport  {book.out / 'report.html'}\n        {book.out / 'report.pdf'}")
    return book.out


def _print_plan(book):
    """How much is to run and, where something was done before, why; returns those reasons."""
    reasons = {label: steps.why(name) for label, steps, name in book.planned()}
    undone = {label: why for label, why in reasons.items() if why}
    print(f"Steps   {len(reasons)}: {len(reasons) - len(undone)} done, {len(undone)} to run")
    if len(undone) < len(reasons):
        for label, why in undone.items():
            _print_indented(f"{label}: {why}")
    return undone


def _print_indented(text):
    print(textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))


def _print_weaknesses(book):
    """What the check of the data found, before anything is trained on it."""
    for problem in (1, 2):
        for warning in book.metrics(check_of(problem))["warnings"] if book.has[problem] else ():
            _print_indented(warning)


def _execute(name, request, book):
    """Executes one notebook, unless its executed copy still shows what it would show now."""
    source = paths.NOTEBOOKS / f"{name}.ipynb"
    target = book.out / "notebooks" / f"{name}.ipynb"
    stamp = book.out / "notebooks" / f".{name}.json"
    made_of = _made_of(source, name, book)
    if _drawn(stamp, book) == made_of and not _undone(name, book):
        print(f"\n{name}: nothing to do")
        return
    print(f"\n{name}")
    started = time.time()
    _listen()
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # until it has run to its end, its copy shows nothing
    before = _figures(book)
    os.environ["HW1_HEADLESS"] = "1"  # the kernel inherits it: no live figures
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
        if issubclass(getattr(builtins, error.ename, object), OSError):
            raise UserError(f"{name}: {error.evalue}. {remedy(None)}") from error
        raise UserError(
            f"Notebook {name} stopped in cell {error.exec_count} with {error.ename}: "
            f"{error.evalue}. The executed copy {target} shows where. This is likely a fault of "
            "the workbook; what was finished before is kept."
        ) from error
    except DeadKernelError as error:
        helps = [steps.for_less_memory(step) for _, steps, step in _undone(name, book)]
        raise UserError(
            f"The kernel of notebook {name} died, as it does when memory runs out or it is "
            "killed. Run the same command again: finished steps are kept, half done ones go on "
            f"from their last checkpoint. If it was memory: {''.join(helps[:1])}"
        ) from error
    undone = [label for label, _, _ in _undone(name, book)]
    if undone:  # an output notebook alone proves nothing
        raise UserError(
            f"Notebook {name} ended, but {', '.join(undone)} did not finish. Run it again."
        )
    drawn = [path for path, looks in _figures(book).items() if before.get(path) != looks]
    hashes = {str(path.relative_to(book.out)): files.digest(path) for path in [target, *drawn]}
    files.write_json(stamp, {"made_of": made_of, "files": hashes})
    print(f"{name}: {time.time() - started:.0f} s")


def _figures(book):
    """The figures that there are, and what tells that one was drawn again: a dict."""
    found = [path for path in (book.out / "figures").glob("[!.]*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in found}


def _drawn(stamp, book):
    """What a notebook was made of when it last ran; None where its files are not as then."""
    try:
        noted = files.read_json(stamp)
        for name, expected in noted["files"].items():
            if files.digest(book.out / name) != expected:
                return None
        return noted["made_of"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _undone(name, book):
    """Those of the steps that a notebook shows that are not done."""
    return [shown for shown in _shown(name, book) if shown[1].status(shown[2]) != "done"]


def _made_of(source, name, book):
    """What an executed notebook shows: its own source, the library's, settings, and its steps."""
    total = hashlib.sha256()
    for path in sorted((paths.ROOT / "hw1lib").rglob("*.py")):
        total.update(path.read_bytes())
    cells = [cell["source"] for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]]
    keys = {label: steps.key(step) for label, steps, step in _shown(name, book)}
    settings = dataclasses.asdict(book.profile) | {"device": None, "checkpoint_every": None}
    return {
        "source": store.key_of(cells),
        "library": total.hexdigest(),
        "settings": store.key_of(settings),
        "steps": keys,
    }


def _shown(name, book):
    """Those of the planned steps that a notebook shows; 02 shows the other seeds', too."""
    for label, steps, step in book.planned():
        own = steps is book.steps
        if (own and step in SHOWS[name]) or (not own and name == "02_finetuning"):
            yield label, steps, step


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
