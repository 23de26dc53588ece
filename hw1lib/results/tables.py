"""The report's tables as DataFrames, with the columns that users and checks rely on."""

import re

import pandas as pd

from hw1lib import files
from hw1lib.data.landcover import SCORED
from hw1lib.results.statistics import wilson

FINETUNE = [
    "setting", "pretraining", "finetuning", "accuracy", "correct", "total", "ci_low", "ci_high",
    "epoch", "accuracy_last",
]
SEEDS = ["setting", "seed", "accuracy", "accuracy_last"]
SEGMENTATION = [
    "model", "miou", "miou_last", *SCORED, "pixel_accuracy", "parameters", "epoch",
]
EVERYTHING = [
    "method", "image", "masks", "coverage", "asa", "oracle_miou", "vote_miou",
    "boundary_recall", "boundary_precision",
]
WHAT = {  # a row of the fine-tuning table: what it starts from, what is trained
    "A": ("none (random weights)", "backbone and head"),
    "B": ("supervised", "backbone and head"),
    "C": ("self-supervised", "backbone and head"),
    "D": ("supervised", "head; backbone frozen"),
    "E": ("self-supervised", "head; backbone frozen"),
    "random": ("none (random weights)", "head; backbone frozen"),
    "knn": ("self-supervised", "nothing: k-NN on frozen features"),
    "colour": ("none", "head on colour mean and deviation"),
}


def finetune(metrics, supervised_source):
    """The table of settings and controls.

    Args:
        metrics: dict from setting or control to that step's metrics.
        supervised_source: file, pool or imagenet: where the backbone of B and D comes from.
    """
    origin = {
        "file": "supervised (the data's file)",
        "pool": "supervised (trained here)",
        "imagenet": "supervised (ImageNet weights, which the course forbids)",
    }
    rows = []
    for setting, values in metrics.items():
        low, high = wilson(values["correct"], values["total"])
        pretraining, finetuning = WHAT[setting]
        if pretraining == "supervised":
            pretraining = origin[supervised_source]
        rows.append(
            {"setting": setting, "pretraining": pretraining, "finetuning": finetuning,
             "ci_low": low, "ci_high": high, **values}
        )
    return pd.DataFrame(rows)[FINETUNE]


def finetune_seeds(metrics):
    """Accuracy of each row of the fine-tuning table for each seed.

    Args:
        metrics: dict from seed to a dict from row to that step's metrics.
    """
    rows = [
        {"setting": row, "seed": seed, **values}
        for seed, of_seed in metrics.items()
        for row, values in of_seed.items()
    ]
    return pd.DataFrame(rows)[SEEDS].sort_values("setting", key=_order, kind="stable")


def over_seeds(table):
    """Mean ± sample deviation in percent over the seeds of each row: a table for reading."""
    groups = table.groupby("setting", sort=False)

    def spread(values):
        deviation = f" ± {100 * values.std():.1f}" if len(values) > 1 else ""
        return f"{100 * values.mean():.1f}{deviation} %"

    return pd.DataFrame(
        {
            "setting": list(groups.groups),
            "seeds": groups.size().to_numpy(),
            "best epoch": groups["accuracy"].agg(spread).to_numpy(),
            "last epoch": groups["accuracy_last"].agg(spread).to_numpy(),
        }
    )


def _order(settings):
    return settings.map(list(WHAT).index)


def segmentation(metrics, parameters):
    """The table of segmentation models, their variants and the colour control.

    Args:
        metrics: dict from row to its numbers: a model, model+tta, model+vote or colour.
        parameters: dict from model to the real network's number of parameters.
    """
    rows = [
        {"model": row, **values, **values["iou"], "parameters": parameters.get(base(row))}
        for row, values in metrics.items()
    ]
    table = pd.DataFrame(rows)[SEGMENTATION]
    return table.astype({"parameters": "Int64"}).astype(dict.fromkeys(SCORED, "float64"))


def base(row):
    """The model behind a row of the segmentation table: lraspp+tta -> lraspp."""
    return row.partition("+")[0]


def everything(rows, images, sam_there):
    """The table of everything masks; SAM's rows are empty where its weights are missing."""
    if not sam_there:
        rows = [{"method": "sam", "image": image} for image in images] + rows
    return pd.DataFrame(rows, columns=EVERYTHING).astype({"masks": "Int64"})


def timings(runs):
    """Seconds, device and start of each step.

    Args:
        runs: dict from step to how it ran, with these three.
    """
    columns = ["seconds", "device", "started"]
    rows = [{"step": step, **{c: run[c] for c in columns}} for step, run in runs.items()]
    return pd.DataFrame(rows, columns=["step", *columns])


def write_csv(path, table):
    """Writes a table atomically: fractions with six digits, what was not measured empty."""
    files.write_text(path, table.to_csv(index=False, float_format="%.6f"))


def markdown(table, formats=None, names=None):
    """A pipe table for pandoc.

    Args:
        table: DataFrame.
        formats: dict from column to a function from a value to text; missing values become –.
        names: dict from column to its heading; columns that are not in it keep their name.
    """
    formats, names = formats or {}, names or {}
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table]
    lines = [
        _line(names.get(column, column) for column in table),
        _line("---:" if right else ":---" for right in numeric),
    ]
    for row in table.itertuples(index=False):
        lines.append(
            _line(
                "–" if pd.isna(value) else escape(formats.get(column, str)(value))
                for column, value in zip(table, row)
            )
        )
    return "\n".join(lines)


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def escape(text):
    """Makes any text harmless inside Markdown: no markup, no HTML, no curly quotes, one line."""
    special = r"""[\\`*_{}\[\]<>#|~^$@&'"]|(?<=-)-|(?<=\.)\."""  # the last two: -- and ...
    return re.sub(special, r"\\\g<0>", " ".join(str(text).split()))


def percent(share):
    """0.4211 -> 42.1 %."""
    return f"{100 * share:.1f} %"


def fraction(value):
    """0.68671 -> 0.687."""
    return f"{value:.3f}"
