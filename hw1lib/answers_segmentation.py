"""Problem 2's tables by name, computed from a workbook's results."""

import dataclasses

import pandas as pd

from hw1lib import profiles
from hw1lib.data import images as image_files
from hw1lib.loops import segment
from hw1lib.models import segmenters
from hw1lib.original import comparable, numbers
from hw1lib.results import metrics, tables
from hw1lib.results.tables import fraction

METHODS = {"sam": "SAM", "slic": "SLIC", "felzenszwalb": "Felzenszwalb"}


def stage_rows(book):
    """The shown tiles with their predicted masks at each stage, and each image's mIoU."""
    settings = book.profile.segmentation
    result = book.result(f"segment-{settings.improved}")
    at = result.metrics["stages"]
    predicted = {stage: result.array(f"stage_{stage}") for stage in at}
    rows = []
    for i, number in enumerate(settings.stage_images):
        image, truth, _ = image_files.load_tile(book.data.problem2.validation, number)
        masks = {stage: predicted[stage][i] for stage in at}
        miou = {s: metrics.miou(metrics.confusion(truth, mask)) for s, mask in masks.items()}
        image = image.transpose(1, 2, 0)
        rows.append({"number": number, "image": image, "truth": truth, "miou": miou, **masks})
    return rows, at


def segmentation_models(book):
    """The numbers of each model, with test-time augmentation where it was asked for: a dict."""
    found = {}
    for model in profiles.SEGMENTERS:
        found[model] = book.metrics(f"segment-{model}")
        if "tta" in found[model]:
            found[f"{model}+tta"] = found[model]["tta"]
    return found | {"colour": book.metrics("segment-colour")}


def segmentation_rows(book):
    """Those numbers, and those of the improved model after the masks' vote: a dict."""
    found = segmentation_models(book)
    improved, masks = book.profile.segmentation.improved, book.metrics("everything")
    voted = masks["refined"][masks["refine"]]
    # The vote is on the last epoch's prediction.
    voted = voted | {"epoch": getattr(book.profile, improved).epochs}
    colour = found.pop("colour")
    return found | {f"{improved}+vote": voted, "colour": colour}


def _segmentation(of):
    def table(book):
        counts = {m: segmenters.parameters(m) for m in profiles.SEGMENTERS}
        return tables.segmentation(of(book), counts)
    return table


def networks(book):
    """What the networks cost and consist of: a row a model."""
    rows = []
    for model in profiles.SEGMENTERS:
        settings = getattr(book.profile, model)
        rows.append(
            {
                "model": model,
                "parameters": segmenters.parameters(model),
                "multiply_adds": multiply_adds(book, model),
                "stride": segment.stride(model, settings),
                "ceiling": book.metrics(f"segment-{model}")["ceiling"],
                **segmenters.anatomy(model),
            }
        )
    return pd.DataFrame(rows).rename(columns=lambda name: name.replace(" ", "_"))


def multiply_adds(book, model):
    """Multiply-adds of the real network for one validation tile, as it is enlarged for it."""
    side = tile_side(book) * getattr(book.profile, model).enlarge
    return segmenters.multiply_adds(model, side)


def tile_side(book):
    """The longer side of the first validation tile in pixels."""
    split = book.data.problem2.validation
    return max(image_files.open_rgb(split.sat(split.numbers[0])).size)


def refinement(book):
    """What each method's masks make of the improved model's prediction on all validation tiles."""
    found = book.metrics("everything")
    rows = [
        {
            "method": method,
            "segments": values["segments"],
            "model_miou": found["model_miou"],
            "vote_miou": values["miou"],
            "change": values["miou"] - found["model_miou"],
        }
        for method, values in found["refined"].items()
    ]
    return pd.DataFrame(rows)


def everything(book):
    found = book.metrics("everything")
    return tables.everything(found["rows"], book.profile.everything.images, bool(found["sam"]))


def segment_settings(book):
    """Training settings of the three models side by side."""
    columns = {
        segmenters.NAMES[m]: dataclasses.asdict(getattr(book.profile, m))
        for m in profiles.SEGMENTERS
    }
    names = next(iter(columns.values()))
    return pd.DataFrame(
        [{"setting": n, **{c: str(v[n]) for c, v in columns.items()}} for n in names]
    )


def original_segmentation(book):
    found = numbers()["problem2"]["miou"]
    return pd.DataFrame(
        [{"model": segmenters.NAMES[m], "miou": v} for m, v in found.items()]
    )


TABLES = {
    "segmentation": _segmentation(segmentation_rows),
    "segmentation_models": _segmentation(segmentation_models),
    "networks": networks,
    "everything": everything,
    "refinement": refinement,
    "segment_settings": segment_settings,
    "original_segmentation": original_segmentation,
}


def readable(book, name, table):
    """A table in words, for a reader: its cells, and the headings of some columns."""
    if name in ("segmentation", "segmentation_models"):
        return _segmentation_for_reading(book, table), {}
    if name == "networks":
        return _networks_for_reading(table), {}
    table = table.copy()
    if "method" in table:
        table["method"] = [METHODS[m] for m in table["method"]]
    if name == "everything":
        table["masks"] = ["not measured" if pd.isna(n) else str(n) for n in table["masks"]]
    if name == "refinement":
        table["segments"] = table["segments"].map("{:.0f}".format)
        table["change"] = table["change"].map("{:+.3f}".format)
        return table, {"segments": "segments an image", "model_miou": "mIoU of the model",
                       "vote_miou": "after the vote"}
    return table, {}


def row_name(row):
    """A row of the segmentation table in words: lraspp+tta -> LR-ASPP MobileNetV3-Large, TTA."""
    if row == "colour":
        return "colour look-up (control)"
    model, _, variant = row.partition("+")
    return segmenters.NAMES[model] + {"": "", "tta": ", TTA", "vote": ", vote"}[variant]


def _segmentation_for_reading(book, table):
    """The ceiling beside each model, the original's value beside ours where it compares."""
    ceilings = {m: book.metrics(f"segment-{m}")["ceiling"] for m in profiles.SEGMENTERS}
    shown = table.drop(columns="parameters")
    if comparable(book, 2):
        seed = numbers()["problem2"]["miou"]
        values = [fraction(seed[row]) if row in seed else None for row in table["model"]]
        shown.insert(1, "original", values)
    shown.insert(
        shown.columns.get_loc("miou_last") + 1, "ceiling",
        [ceilings.get(row) for row in table["model"]],
    )
    shown["model"] = [row_name(row) for row in table["model"]]
    return shown


def _networks_for_reading(table):
    """A column a model, as there are few models and many counts."""
    forms = {
        "parameters": "{:,}".format,
        "multiply_adds": lambda count: f"{count / 1e9:.3g} billion",
        "stride": lambda stride: f"{stride} pixels",
        "ceiling": fraction,
    }
    names = {"stride": "output stride in the tile", "ceiling": "ceiling of the mIoU there",
             "multiply_adds": "multiply-adds for one tile"}
    rows = []
    for quantity in table.columns.drop("model"):
        values = [forms.get(quantity, str)(value) for value in table[quantity]]
        rows.append((names.get(quantity, quantity.replace("_", " ")), *values))
    columns = ["", *(segmenters.NAMES[model] for model in table["model"])]
    return pd.DataFrame(rows, columns=columns)
