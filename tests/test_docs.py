"""README and the other documents: their code runs, their commands parse, and the library keeps their rules."""

import ast
import importlib
import re
import shlex
import shutil
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from hw1lib import cli, paths, profiles, variants
from hw1lib.data import layout
from hw1lib.loops import pretrain
from hw1lib.steps import graph, store
from hw1lib.workbook import Workbook

DOCUMENTS = [paths.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
DOCUMENTS += sorted((paths.ROOT / "docs").glob("*.md"))
TEXT = {path.name if path.parent == paths.ROOT else path.stem: path.read_text(encoding="utf-8") for path in DOCUMENTS}
BLOCKS = [
    (name, textwrap.dedent(code))
    for name, text in TEXT.items()
    for code in re.findall(r"(?ms)^ *```python\n(.*?)^ *```", text)
]


def named(part):
    """The one block of code with these words."""
    (found,) = [code for _, code in BLOCKS if part in code]
    return found


def spans(part):
    """Pieces of code within CONTRIBUTING's sentences that begin so."""
    return [span for span in re.findall(r"`([^`\n]+)`", TEXT["CONTRIBUTING.md"]) if span.startswith(part)]


def test_each_block_of_code_is_run_below():
    assert len(BLOCKS) == 3 and named("finetuning.accuracies") and named("def learning_rate") and named("def rotation")


@pytest.mark.slow
def test_the_readmes_cell_keeps_what_the_notebook_keeps(smoke_run, tmp_path):
    out = tmp_path / "smoke"
    shutil.copytree(smoke_run, out)
    for name in ("tables/finetune.csv", "figures/finetune_accuracy.png"):
        (out / name).unlink()
    exec(named("finetuning.accuracies"), {"book": Workbook("smoke", out=out)})
    for name in ("tables/finetune.csv", "figures/finetune_accuracy.png"):
        assert (out / name).read_bytes() == (smoke_run / name).read_bytes()


def test_the_figure_that_contributing_adds_is_drawn_and_kept(course_data, tmp_path):
    code = named("def learning_rate")
    module = importlib.import_module(re.match(r"# (hw1lib/.*)\.py\n", code)[1].replace("/", "."))
    names = dict(vars(module))
    exec(code, names)
    history = pd.DataFrame({"epoch": [1, 2], "lr": [0.1, 0.01]})
    assert isinstance(names["learning_rate"](history), Figure)
    book = Workbook("smoke", course_data, tmp_path / "out")
    here = {"book": book, "pretrained": store.Result("pretrain", tmp_path), "pretraining": store}
    (tmp_path / "history.csv").write_text(history.to_csv(index=False))
    here["pretraining"] = type("chapter", (), {"learning_rate": staticmethod(names["learning_rate"])})
    for cell in spans('book.keep("learning_rate"'):
        exec(cell, here)
    assert (book.out / "figures" / "learning_rate.png").is_file()


def test_the_pretraining_that_contributing_adds_trains(course_data, tmp_path):
    """Under the step and in the row that it says."""
    names = dict(vars(pretrain))
    exec(named("def rotation"), names)
    pretrain_module = type("loops", (), {"rotation": staticmethod(names["rotation"])})
    (yielded,) = spans("yield Step(")
    step = eval(yielded.removeprefix("yield "), {"Step": graph.Step, "pretrain": pretrain_module})
    (row,) = spans("Row(")
    row = eval(row, {"Row": variants.Row})
    assert row.pretraining == step.name and row.step == "control-rotation"
    small = {"model_scale": 0.125, "pretrain.epochs": 1, "pretrain.batch_size": 4, "pretrain.precision": "float32"}
    problem1 = layout.find(course_data, profiles.get("smoke").data).problem1
    folder = tmp_path / "run"
    folder.mkdir()
    step.run(store.Draft(step.name, folder), problem1, profiles.get("smoke", small), torch.device("cpu"))
    result = store.Result(step.name, folder)
    assert np.isfinite(result.metrics["loss"]) and "conv1.weight" in result.weights()


@pytest.mark.parametrize("name", TEXT)
def test_each_command_of_a_document_is_one(name):
    """With names that stand for something, such as IMAGE_DIR, as they are."""
    commands = re.findall(r"(?m)^(?:\w+=\S+ )?\.venv/bin/python -m hw1lib ([^#\n]*)", TEXT[name])
    for command in commands:
        words = shlex.split(command)
        if "COMMAND" not in words:
            assert cli._parser().parse_args(words).run
    assert commands or name != "README.md"


NEVER = {  # as CONTRIBUTING's table says
    "metrics": ("hw1lib.loops", "hw1lib.steps", "hw1lib.chapters", "hw1lib.models", "hw1lib.files", "hw1lib.paths"),
    "chapters": ("hw1lib.loops", "hw1lib.steps", "hw1lib.workbook", "hw1lib.report"),
    "loops": ("hw1lib.chapters", "hw1lib.steps", "hw1lib.workbook", "hw1lib.report"),
    "models": ("hw1lib.loops", "hw1lib.chapters", "hw1lib.steps", "hw1lib.settings", "hw1lib.profiles"),
    "data": ("hw1lib.models", "hw1lib.loops", "hw1lib.chapters", "hw1lib.steps"),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("folder", NEVER)
def test_imports_keep_the_rules_of_the_house(folder):
    files_of = sorted((paths.ROOT / "hw1lib" / folder).rglob("*.py"))
    broken = {(path.name, name) for path in files_of for name in imported(path) if f"{name}.".startswith(
        tuple(f"{rule}." for rule in NEVER[folder]))}  # fmt: skip
    assert files_of and broken == set()


def test_only_render_and_style_write_files_among_the_chapters():
    writing = re.compile(r"\bfiles\.(write|replacing)|\.write_(text|bytes)\(|open\(.*[\"']w|\.to_csv\(")
    chapters = (paths.ROOT / "hw1lib" / "chapters").glob("*.py")
    assert {path.name for path in chapters if writing.search(path.read_text())} == {"style.py"}
