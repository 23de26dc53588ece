"""The original report: its results where they are comparable, its settings, and the defects of its recipe."""

import functools
import tomllib

import pandas as pd

from hw1lib import paths
from hw1lib.chapters.phrases import sentences
from hw1lib.chapters.tables import settings_table as side_by_side
from hw1lib.data import layout
from hw1lib.settings import result_settings


@functools.cache
def numbers():
    """Return the content of report/original.toml: the original's results, baselines, stated settings and defects."""
    return tomllib.loads(paths.ORIGINAL.read_text(encoding="utf-8"))


def beside(data, problem):
    """Return the original's accuracies (problem 1) or mIoUs (2) if the data has the course's counts, else {}.

    Args:
        data: layout.Layout.
        problem: 1 or 2.
    """
    original = numbers()[f"problem{problem}"]
    course = original["course_data"]
    if problem == 1:
        counts = len(data.problem1.val), len(data.problem1.classes)
        return original["accuracy"] if counts == (course["validation"], course["classes"]) else {}
    resplit = (data.root / layout.SPLIT).is_file()
    return original["miou"] if len(data.problem2.validation) == course["validation"] and not resplit else {}


def compare(data, problem, images, baselines, form):
    """Return a sentence on whether the original's numbers are comparable.

    Args:
        data: layout.Layout.
        problem: 1 or 2.
        images: what validation consists of: "images" or "tiles".
        baselines: how the sentence names the course's baselines.
        form: function that formats a baseline.
    """
    baseline = {name: form(value) for name, value in numbers()[f"problem{problem}"]["baseline"].items()}
    return sentences("comparable", same=beside(data, problem), images=images, baselines=baselines, **baseline)


def table(problem, column, value, names=None):
    """Return the original's results as a DataFrame with two columns.

    Args:
        problem: 1 or 2.
        column: heading of the settings or models.
        value: accuracy or miou.
        names: dict from a setting or model to its name in the report.
    """
    rows = numbers()[f"problem{problem}"][value].items()
    return pd.DataFrame([((names or {}).get(name, name), number) for name, number in rows], columns=[column, value])


def settings_table(profile, seed, group):
    """Return the settings of this run beside the original's, of which those that its report does not state are marked.

    Args:
        profile: settings.Profile of this run.
        seed: settings.Profile of the original.
        group: pretrain or finetune.
    """
    columns = {}
    for heading, source in (("this run", profile), ("original", seed)):
        shared = {"image_size": source.data.image_size, "zero_init_residual": source.zero_init_residual}
        columns[heading] = shared | result_settings(getattr(source, group))
        if columns[heading]["augmentation"] == "original":  # the original's transforms do not use these
            columns[heading] |= dict.fromkeys({"views", "crop_scale"} & set(columns[heading]), "–")
    assumed = {k: v for k, v in columns["original"].items() if k not in numbers()["stated"][group] and v != "–"}
    columns["original"] |= {name: f"{value} (assumed)" for name, value in assumed.items()}
    return side_by_side(columns)


def defects(views, metrics, history, before, after):
    """Return the known defects of the original recipe, and whether this run's results show them.

    Args:
        views: (2, 3, S, S) views of two copies of one image, drawn as one batch.
        metrics, history: those of step pretrain.
        before: state dict of the pre-trained backbone.
        after: state dict of setting E's resnet.Classifier, whose backbone was loaded from `before` and frozen.
    """
    statistics = [name for name in before if name.endswith(("running_mean", "running_var"))]
    present = (  # in the order of report/original.toml
        (views[0] == views[1]).all(),
        metrics["loss"] != history["loss"].iloc[-1],
        any((before[name] != after[f"backbone.{name}"]).any() for name in statistics),
        not after["head.mean"].any(),
    )
    table = pd.DataFrame(numbers()["defects"].items(), columns=["defect", "original"])
    table["original"] = ["yes (stated)" if quote else "yes (assumed)" for quote in table["original"]]
    return table.assign(**{"this run": ["yes" if defect else "no" for defect in present]})
