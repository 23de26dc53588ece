"""Documents: their code runs, their commands parse, and the files that they name exist."""

import re
import shlex
import shutil
import subprocess
import textwrap
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from hw1lib import paths, profiles, variants
from hw1lib.chapters import ch01_pretraining
from hw1lib.data import layout
from hw1lib.loops import pretrain
from hw1lib.steps import graph, store
from hw1lib.workbook import Workbook
from tests.test_cli import parse

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"]
DOCUMENTS += sorted(f"docs/{path.name}" for path in (paths.ROOT / "docs").glob("*.md"))
TEXT = {name: (paths.ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
BLOCKS = [
    textwrap.dedent(code) for text in TEXT.values() for code in re.findall(r"(?ms)^ *```python\n(.*?)^ *```", text)
]
COMMAND = re.compile(r"(?m)(?:^ *|`)((?:make|[^`\n]*-m hw1lib) [a-z][^`#\n]*)")
COMMANDS = {line.strip() for text in TEXT.values() for line in COMMAND.findall(text.replace("\\\n", " "))}
COMMANDS = sorted(command for command in COMMANDS if "…" not in command)


def block(text):
    """Return the only block of code that contains a text."""
    (code,) = [code for code in BLOCKS if text in code]
    return code


def span(start):
    """Return the only piece of inline code in CONTRIBUTING that starts with a text."""
    (code,) = re.findall(rf"`({re.escape(start)}[^`\n]*)`", TEXT["CONTRIBUTING.md"])
    return code


def test_commands_are_found_and_each_block_of_code_is_run_below():
    assert len(COMMANDS) > 30
    assert len(BLOCKS) == 3 and block("finetuning.accuracies") and block("def learning_rate") and block("def rotation")


@pytest.mark.slow
def test_the_cell_of_the_faq_keeps_what_the_notebook_keeps(smoke_run, tmp_path):
    out = shutil.copytree(smoke_run, tmp_path / "smoke")
    names = ("tables/finetune.csv", "figures/finetune_accuracy.png")
    for name in names:
        (out / name).unlink()
    exec(block("finetuning.accuracies"), {"book": Workbook("smoke", out=out)})
    assert all((out / name).read_bytes() == (smoke_run / name).read_bytes() for name in names)


def test_the_figure_that_contributing_adds_is_drawn_and_kept(course_data, tmp_path):
    names = dict(vars(ch01_pretraining))
    exec(block("def learning_rate"), names)
    pretrained = SimpleNamespace(history=pd.DataFrame({"epoch": [1, 2], "lr": [0.1, 0.01]}))
    book = Workbook("smoke", course_data, tmp_path / "out")
    pretraining = SimpleNamespace(learning_rate=names["learning_rate"])
    exec(span("book.keep("), {"book": book, "pretraining": pretraining, "pretrained": pretrained})
    assert (book.out / "figures" / "learning_rate.png").is_file()


@pytest.mark.slow
def test_the_pretraining_that_contributing_adds_trains(course_data, tmp_path):
    """The step and the table row that CONTRIBUTING shows fit the function."""
    names = dict(vars(pretrain))
    exec(block("def rotation"), names)
    loops = SimpleNamespace(rotation=names["rotation"])
    settings = {"model_scale": 0.125, "pretrain.epochs": 1, "pretrain.batch_size": 4, "pretrain.precision": "float32"}
    profile = profiles.get("smoke", settings)
    problem1 = layout.find(course_data, profile.data).problem1
    names = {"Step": graph.Step, "pretrain": loops, "profile": profile, "data": problem1}
    step, row = eval(span("yield Step(").removeprefix("yield "), names), eval(span("Row("), {"Row": variants.Row})
    assert row.pretraining == step.name and row.step == "control-rotation"
    step.run(store.Draft(step.name, tmp_path), problem1, profile, torch.device("cpu"))
    result = store.Result(step.name, tmp_path)
    assert 0 < result.metrics["loss"] < 10 and "conv1.weight" in result.weights()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_parses(command):
    """Placeholders such as IMAGE_DIR stand for themselves; make expands its own commands."""
    if command.startswith("make"):
        lines = subprocess.check_output(
            ["make", "-n", *shlex.split(command)[1:]], cwd=paths.ROOT, text=True
        ).splitlines()
        command = next((line for line in lines if "-m hw1lib" in line), "")
    words = shlex.split(command.partition("-m hw1lib")[2])
    if words:
        _, arguments = parse(words)
        assert profiles.get("demo", dict(setting.split("=") for setting in arguments.get("settings", ())))


def test_the_profile_of_the_settings_page_is_one(tmp_path):
    (text,) = re.findall(r"(?ms)^```toml\n(.*?)^```", TEXT["docs/settings.md"])
    (tmp_path / "my.toml").write_text(text)
    profile = profiles.get(tmp_path / "my.toml")
    assert (profile.name, profile.pretrain.epochs, profile.segmentation.improved) == ("my", 12, "deeplabv3")


def anchors(text):
    """Return the anchors of a document's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", text)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_file_names_of_a_document_are_valid(name):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXT[name]):
        file, _, anchor = target.partition("#")
        path = (paths.ROOT / name).parent / file if file else paths.ROOT / name
        assert path.exists() and (not anchor or anchor in anchors(path.read_text(encoding="utf-8"))), target
    for file in re.findall(r"`((?:hw1lib|tests|tools|benchmarks|report)/[\w/]+\.(?:py|toml|j2))`", TEXT[name]):
        assert (paths.ROOT / file).is_file(), file
