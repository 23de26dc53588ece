"""The published demo: its tables are made again to the byte from its metrics, its picture of a page is of it."""

from PIL import Image

from hw1lib import files, paths
from hw1lib.chapters import everything, finetuning, networks, render, segmentation
from hw1lib.comparison import ROWS
from hw1lib.models.segmenters import SEGMENTERS

DEMO = paths.REPORT / "demo"


def test_published_tables_are_made_again_to_the_byte():
    """The row vote of the table of models is that of the everything step, and the control stands last."""
    kept = files.read_json(DEMO / "metrics.json")
    settings, steps = kept["settings"], kept["steps"]
    seeds = {0: "{}".format, 1: "{}, seed 1".format, 2: "{}, seed 2".format}
    tuned = {  # the simple control is the same for all seeds
        seed: {name: steps.get(label(row.step), steps[row.step]) for name, row in ROWS.items()}
        for seed, label in seeds.items()
    }
    segmented = {name: steps[f"segment-{name}"] for name in SEGMENTERS}
    masks = steps["everything"]
    rows = segmentation.variants(segmented, steps["segment-colour"])
    control = {("colour", ""): rows.pop(("colour", ""))}
    vote = masks["refined"][masks["refine"]] | {"epoch": settings["lraspp"]["epochs"]}
    made = {
        "finetune": finetuning.accuracies(tuned[0], steps["pretrain-supervised"]["source"]),
        "finetune_seeds": finetuning.accuracies_of_seeds(tuned),
        "segmentation": segmentation.table(rows | {("lraspp", "vote"): vote} | control),
        "networks": networks.table(128, {name: settings[name]["enlarge"] for name in SEGMENTERS}, segmented),
        "everything": everything.table(masks, settings["everything"]["images"]),
        "refinement": everything.refinement(masks),
    }
    for name, table in made.items():
        text = table.to_csv(index=False, float_format="%.6f")  # as `keep` writes it
        assert text == (DEMO / "tables" / f"{name}.csv").read_text(), name


def test_the_picture_in_the_readme_is_of_the_published_report():
    """Else run make publish. The picture names the hash of the report that it was drawn from."""
    (picture,) = [line for line in (paths.ROOT / "README.md").read_text().splitlines() if line.startswith("![A page")]
    assert picture.endswith(f"(report/demo/{render.PAGE})")
    with Image.open(DEMO / render.PAGE) as image:
        assert image.text["report"] == render.shown(DEMO)
