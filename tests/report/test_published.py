"""The published demo: its tables follow from its metrics to the byte, and the README shows one of its pages."""

import io

import numpy as np
import pytest
from PIL import Image

from hw1lib import files, paths
from hw1lib.chapters import architectures, ch02_finetuning, ch04_segmentation, ch05_segment_anything
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.report import render
from hw1lib.variants import ROWS

pytestmark = pytest.mark.slow
DEMO = paths.REPORT / "demo"


def test_published_tables_follow_from_the_metrics():
    """The row vote of the table of models is that of the everything step, and the control stands last."""
    kept = files.read_json(DEMO / "metrics.json")
    settings, steps = kept["settings"], kept["steps"]
    seeds = {0: "{}".format} | {seed: f"{{}}, seed {seed}".format for seed in range(1, settings["seeds"])}
    tuned = {  # the simple control is the same for all seeds
        seed: {name: steps.get(label(row.step), steps[row.step]) for name, row in ROWS.items()}
        for seed, label in seeds.items()
    }
    segmented = {name: steps[f"segment-{name}"] for name in SEGMENTERS}
    masks = steps["everything"]
    vote = masks["refined"][masks["refine"]] | {"epoch": settings["lraspp"]["epochs"]}
    rows = ch04_segmentation.variants(segmented, steps["segment-colour"], {"lraspp+vote": vote})
    tables = {
        "finetune": ch02_finetuning.accuracies(tuned[0], steps["pretrain-supervised"]["source"]),
        "finetune_seeds": ch02_finetuning.accuracies_by_seed(tuned),
        "segmentation": ch04_segmentation.table(rows),
        "networks": architectures.table(128, {name: settings[name]["enlarge"] for name in SEGMENTERS}, segmented),
        "everything": ch05_segment_anything.table(masks, settings["everything"]["images"]),
        "refinement": ch05_segment_anything.refinement(masks),
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.6f")  # as `keep` writes it
        assert text == (DEMO / "tables" / f"{name}.csv").read_text(), name


def test_the_picture_in_the_readme_is_a_page_of_the_published_report():
    """If not, run make publish."""
    text = (paths.ROOT / "README.md").read_text()
    assert f"(report/demo/{render.PAGE})" in text
    with Image.open(DEMO / render.PAGE) as published, Image.open(io.BytesIO(render.page(DEMO))) as drawn:
        assert np.array_equal(published.convert("RGB"), drawn.convert("RGB"))
