"""Every table of the report by name, computed from a workbook's results."""

import dataclasses

import pandas as pd

from hw1lib import answers_segmentation, original, profiles
from hw1lib.data import images as image_files
from hw1lib.data.landcover import SCORED
from hw1lib.results import metrics, sentences, statistics, tables
from hw1lib.results.sentences import ranked
from hw1lib.results.tables import fraction, percent

PAIRS = 5  # most confused pairs of classes that are shown


def rows():
    """The rows of the fine-tuning table: settings, then controls."""
    return (*profiles.SETTINGS, *profiles.CONTROLS)


def step_of(row):
    """The step behind a row of the fine-tuning table."""
    return f"{'control' if row in profiles.CONTROLS else 'finetune'}-{row}"


REPEATED = ("pretrain", "pretrain-supervised", *map(step_of, rows()))  # with each seed


def right(book):
    """Which validation images each row gets right at its last epoch: dict of (N,) bool.

    knn-random is k-NN on a random backbone's features. Rows whose pre-training collapsed are left
    out, so that none of them wins a comparison.
    """
    predicted = {row: book.result(step_of(row)).array("predictions")[-1] for row in rows()}
    predicted["knn-random"] = book.result("control-knn").array("predictions_random")[-1]
    if book.metrics("pretrain")["collapsed"]:
        predicted = {row: p for row, p in predicted.items() if row not in ("C", "E", "knn")}
    labels = book.data.problem1.val.labels
    return {row: values == labels for row, values in predicted.items()}


def most_confused(book):
    """The best setting at the last epoch, its confusion matrix and its most confused pairs."""
    best = ranked(right(book))[0]
    val = book.data.problem1.val
    predicted = book.result(step_of(best)).array("predictions")[-1]
    matrix = metrics.confusion(val.labels, predicted, len(val.classes))
    return best, predicted, matrix, metrics.confused_pairs(matrix, PAIRS)


def confused(book):
    """The most confused pairs as a table."""
    classes = book.data.problem1.classes
    matrix, pairs = most_confused(book)[2:]
    rows = [
        (
            f"{classes[i]} – {classes[j]}",
            f"{matrix[i, j]} of {matrix[i].sum()}",
            f"{matrix[j, i]} of {matrix[j].sum()}",
        )
        for i, j in pairs
    ]
    return pd.DataFrame(rows, columns=["classes", "taken for the second", "taken for the first"])


def mcnemar(book):
    """Exact McNemar tests between all rows at the last epoch: p-values, the lower half."""
    hits = right(book)
    names = list(hits)
    table = pd.DataFrame({"setting": names[1:]})
    for column, one in enumerate(names[:-1]):
        table[one] = [
            sentences.p_number(statistics.mcnemar(hits[one], hits[two])) if row >= column else ""
            for row, two in enumerate(names[1:])
        ]
    return table


def over_seeds(book):
    return tables.over_seeds(finetune_seeds(book))


def finetune(book):
    metrics = {row: book.metrics(step_of(row)) for row in rows()}
    return tables.finetune(metrics, book.metrics("pretrain-supervised")["source"])


def finetune_seeds(book):
    return tables.finetune_seeds(
        {
            seed: {row: steps.done(step_of(row)).metrics for row in rows()}
            for seed, steps in book.seeds.items()
        }
    )


def defects(book):
    """Which of the original recipe's known defects this run contains."""
    as_original = book.profile.pretrain.augmentation == "original"
    known = {
        "one draw of the package's augmentation for a whole batch": as_original,
        "images normalised twice, and clamped to 0…1 in between": as_original,
        "the checkpoint of the lowest self-supervised loss is kept, which rewards collapse": False,
        "frozen backbones in training mode: BatchNorm statistics drift": False,
        "frozen features are not standardised": not book.profile.finetune.standardise,
        "validation images are augmented": False,
        "the text contradicts its table": False,
    }
    return pd.DataFrame(
        [
            {"defect": d, "original": "yes", "this run": "yes" if here else "no"}
            for d, here in known.items()
        ]
    )


def embedding(book):
    numbers = book.metrics("embed")
    return pd.DataFrame(
        [
            {"measure": name, **{e: numbers[f"{name}_{e}"] for e in ("first", "last")}}
            for name in ("silhouette", "purity", "trustworthiness")
        ]
    )


def _used(settings):
    """Settings as a dict; those that the original's own transforms leave unused are –."""
    values = dataclasses.asdict(settings)
    if values["augmentation"] == "original":
        values |= dict.fromkeys({"views", "crop_scale"} & set(values), "–")
    return values


def _settings(group):
    def table(book):
        """Each setting of this run beside the original's."""
        here, seed = (_used(getattr(p, group)) for p in (book.profile, profiles.get("seed")))
        if group in ("pretrain", "finetune"):
            size = {"image_size": book.profile.data.image_size}
            here, seed = size | here, {"image_size": profiles.get("seed").data.image_size} | seed
        return pd.DataFrame(
            [{"setting": k, "this run": str(v), "original": str(seed[k])} for k, v in here.items()]
        )
    return table


def original_finetune(book):
    numbers = original.numbers()["problem1"]
    return pd.DataFrame(
        [{"setting": s, "accuracy": numbers["accuracy"][s]} for s in profiles.SETTINGS]
    )


def steps(book):
    """Every step with its key: where each number comes from."""
    return pd.DataFrame(
        [{"step": label, "key": steps.key(name)} for label, steps, name in book.planned()]
    )


def timings(book):
    return tables.timings(
        {label: steps.done(name).run for label, steps, name in book.planned()}
    )


TABLES = {
    "finetune": finetune,
    "finetune_seeds": finetune_seeds,
    "over_seeds": over_seeds,
    "mcnemar": mcnemar,
    "confused": confused,
    "defects": defects,
    "embedding": embedding,
    "pretrain_settings": _settings("pretrain"),
    "supervised_settings": _settings("supervised"),
    "finetune_settings": _settings("finetune"),
    "original_finetune": original_finetune,
    "steps": steps,
    "timings": timings,
    **answers_segmentation.TABLES,
}
SAVED = {
    1: ("finetune", "finetune_seeds"),
    2: ("segmentation", "networks", "everything", "refinement"),
}


def printed(book, name, table):
    """A table of that name as Markdown, for notebooks and report."""
    formats = dict.fromkeys(("accuracy", "accuracy_last"), percent)
    shares = ("miou", "miou_last", "ceiling", "model_miou", "pixel_accuracy", "first", "last")
    formats |= dict.fromkeys((*shares, *tables.EVERYTHING[3:], *SCORED), fraction)
    formats |= {"parameters": "{:,}".format, "seconds": "{:.1f}".format}
    headings = {
        "asa": "ASA", "oracle_miou": "oracle mIoU", "vote_miou": "vote mIoU", "miou": "mIoU",
        "accuracy_last": "last epoch", "miou_last": "last epoch",
    }
    if name == "finetune":
        table = _finetune_for_reading(book, table)
    if name in answers_segmentation.TABLES:
        table, more = answers_segmentation.readable(book, name, table)
        headings |= more
    headings |= {column: column.replace("_", " ") for column in table if column not in headings}
    return tables.markdown(table, formats, headings)


def _finetune_for_reading(book, table):
    """The interval in one column, the original's value beside ours where it compares."""
    interval = [
        f"{100 * low:.1f} – {100 * high:.1f}"
        for low, high in zip(table["ci_low"], table["ci_high"])
    ]
    shown = pd.DataFrame(
        {
            "setting": table["setting"],
            "pre-training": table["pretraining"],
            "trained": table["finetuning"],
            "accuracy": table["accuracy"],
            "95 % interval": interval,
            "correct": [f"{c} / {t}" for c, t in zip(table["correct"], table["total"])],
            "epoch": table["epoch"],
            "accuracy_last": table["accuracy_last"],
        }
    )
    if original.comparable(book, 1):
        seed = original.numbers()["problem1"]["accuracy"]
        shown["original"] = [percent(seed[s]) if s in seed else None for s in table["setting"]]
    return shown
