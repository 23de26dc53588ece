"""Figures: the same to the byte, in three formats, for the smallest and the largest results."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from hw1lib import gallery, profiles
from hw1lib.data.landcover import CLASSES, PALETTE, SCORED
from hw1lib.models import segmenters
from hw1lib.chapters import style as figures
from hw1lib.results import tables
from hw1lib.results import figures_classification as one
from hw1lib.results import figures_segmentation as two

METHODS = {"sam": "SAM ViT-B", "slic": "SLIC", "felzenszwalb": "Felzenszwalb"}


def classes(count):
    return tuple(f"Class_{number}" for number in range(count))


def image(side=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def land(side=24, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 7, (3, 3)).astype(np.uint8)
    return blocks.repeat(side // 3, 0).repeat(side // 3, 1)


def history(epochs, **columns):
    random = np.random.default_rng(0)
    names = ("loss", "deviation", "accuracy", "miou", "effective_rank", "lr")
    table = {name: random.random(epochs) for name in names}
    return pd.DataFrame({"epoch": np.arange(1, epochs + 1), **table, **columns})


def tuned(rows):
    metrics = {"correct": 5, "total": 9, "epoch": 1, "accuracy": 5 / 9, "accuracy_last": 4 / 9}
    return tables.finetune({row: metrics for row in rows}, "pool")


def stage_rows(count):
    return [
        {"number": f"{n:04d}", "image": image(seed=n), "truth": land(seed=n),
         "early": land(seed=n + 1), "middle": land(seed=n + 2), "final": land(seed=n + 3),
         "miou": {"early": 0.1, "middle": 0.2, "final": 0.3}}
        for n in range(count)
    ]


def mask_rows(count, methods):
    part = {"labels": land().astype(int), "vote": land(), "masks": 9}
    return [
        {"number": f"{n:04d}", "image": image(), "truth": land(), "model": land(seed=n),
         **dict.fromkeys(methods, part)}
        for n in range(count)
    ]


def ious(value=0.25, **changes):
    return dict.fromkeys(SCORED, value) | changes


def method(masks, labels, points):
    def draw():
        grid = np.array([(4.0, 4.0), (12.0, 12.0)])
        return two.everything_method(image(), grid, points, labels, masks, "SLIC")
    return draw


PARTS = np.stack([land() == c for c in np.unique(land())])
NONE = np.zeros((0, 24, 24), dtype=bool)

BEFORE = {"deviation": 0.05, "effective_rank": 3.0}
ROW = {"epoch": 1, "loss": 1.5, "lr": 0.1, "knn": 0.4, "deviation": 0.1, "confusion": [[1]]}

DRAWN = {
    "image_grid-1": lambda: figures.image_grid({"a": [image()]}),
    "image_grid-ragged": lambda: figures.image_grid({"a": [image()], "b": [image()] * 12}),
    "image_grid-12": lambda: figures.image_grid({c: [image(8)] for c in classes(12)}),
    "timing-1": lambda: figures.timing({"pretrain": 0.0}),
    "timing-19": lambda: figures.timing(dict(zip(classes(19), np.geomspace(0.1, 1e5, 19)))),
    "class_counts-1": lambda: one.class_counts({"training": {"Couch": 1}}),
    "class_counts-65": lambda: one.class_counts(
        {split: dict.fromkeys(classes(65), 10) for split in ("training", "validation")}
    ),
    "pretraining-1": lambda: one.pretraining_curves(history(1), BEFORE),
    "pretraining-both": lambda: one.pretraining_curves(
        history(9, knn=np.linspace(0.2, 0.6, 9)), BEFORE | {"knn": 0.3}, history(9)
    ),
    "pretraining-file": lambda: one.pretraining_curves(history(9), BEFORE, None),
    "progress-1": lambda: figures.progress("pretrain", [ROW]),
    "progress-800": lambda: figures.progress(
        "control-random", [{"epoch": n, "loss": 1 / n, "lr": 0.1} for n in range(1, 801)]
    ),
    "confused_pairs-none": lambda: one.confused_pairs([], 8),
    "confused_pairs-one-sided": lambda: one.confused_pairs(
        [("Mug", "Alarm_Clock", 1, [image()]), ("Alarm_Clock", "Mug", 0, [])], 8
    ),
    "confused_pairs-full": lambda: one.confused_pairs(
        [("Evergreen broadleaf forests", "Cropland and its mosaics", 400, [image()] * 8)] * 10, 8
    ),
    "finetune_curves-1": lambda: one.finetune_curves({"A": history(1)}),
    "finetune_curves": lambda: one.finetune_curves({s: history(200) for s in "ABCDE"}),
    "finetune_accuracy-1": lambda: one.finetune_accuracy(tuned("A")),
    "finetune_accuracy": lambda: one.finetune_accuracy(
        tuned((*"ABCDE", "random", "knn", "colour"))
    ),
    "embedding-2": lambda: one.embedding(
        {"t-SNE, first epoch": np.eye(2)}, np.array([0, 1]), classes(2)
    ),
    "embedding-65": lambda: one.embedding(
        {epoch: np.random.default_rng(0).random((130, 2)) for epoch in ("first", "last")},
        np.arange(130) % 65, classes(65),
    ),
    "embedding-gap": lambda: one.embedding({"a": np.eye(2)}, np.array([0, 0]), classes(3)),
    "confusion-1": lambda: one.confusion(np.array([[1]]), classes(1)),
    "confusion-65": lambda: one.confusion(np.eye(65, dtype=int), classes(65)),
    "confusion-empty-row": lambda: one.confusion(np.array([[2, 1], [0, 0]]), classes(2)),
    "tiles-1": lambda: two.tiles([("0001", image(), land())]),
    "tiles": lambda: two.tiles([(f"{n:04d}", image(), land(seed=n)) for n in range(6)]),
    "pixel_shares": lambda: two.pixel_shares(
        {"train": np.full(7, 1 / 7), "validation": np.eye(7)[6]}
    ),
    **{
        f"architecture-{name}": lambda name=name: two.architecture(segmenters.outline(name), name)
        for name in segmenters.NAMES
    },
    "segmentation_curves-1": lambda: two.segmentation_curves(
        {"lraspp": history(1)}, segmenters.NAMES, 0.0
    ),
    "segmentation_curves": lambda: two.segmentation_curves(
        {name: history(50) for name in segmenters.NAMES}, segmenters.NAMES, 0.6
    ),
    "class_iou": lambda: two.class_iou(
        dict.fromkeys((*segmenters.NAMES, "colour"), ious()), segmenters.NAMES
    ),
    "class_iou-one-class": lambda: two.class_iou(
        dict.fromkeys((*segmenters.NAMES, "colour"), ious(None, water=1.0)), segmenters.NAMES
    ),
    "stages-1": lambda: two.stages(stage_rows(1), {"early": 1, "middle": 1, "final": 1}),
    "stages": lambda: two.stages(stage_rows(3), {"early": 1, "middle": 25, "final": 50}),
    "everything_masks-1": lambda: two.everything_masks(mask_rows(1, ["slic"]), {"slic": "SLIC"}),
    "everything_masks": lambda: two.everything_masks(mask_rows(3, METHODS), METHODS),
    "everything_method": method(PARTS, land().astype(int), np.ones((len(PARTS), 2))),
    "everything_method-none": method(NONE, np.full((24, 24), -1), np.zeros((0, 2))),
}


@pytest.fixture(autouse=True)
def house_style():
    with figures.style():
        yield


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_draws_at_its_extremes(name, tmp_path):
    drawn = DRAWN[name]()
    figures.save(drawn, tmp_path / "figure.png", dpi=40)
    pixels = pyplot.imread(tmp_path / "figure.png")
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 20
    assert pixels[..., :3].std() > 0.01  # not an empty sheet
    assert drawn.get_figwidth() <= 7.2 or name.startswith("progress")  # the page's text is so wide
    assert not pyplot.get_fignums()  # none is left in pyplot's hands


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
@pytest.mark.parametrize(
    "name",
    ["finetune_accuracy", "confusion-1", "stages-1", "everything_method", "pretraining-both",
     "confused_pairs-one-sided"],
)
def test_two_drawings_are_the_same_file_to_the_byte(name, kind, tmp_path):
    """Dates, versions and random names are the usual leaks."""
    written = []
    for number in (1, 2):
        path = tmp_path / str(number) / f"figure.{kind}"
        figures.save(DRAWN[name](), path, dpi=60)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    head = {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml"}[kind]
    assert written[0].startswith(head)
    assert matplotlib.__version__.encode() not in written[0].replace(b"svg11.dtd", b"")


def test_saving_twice_gives_the_same_file(tmp_path):
    drawn = DRAWN["tiles-1"]()
    for kind in ("png", "pdf", "svg"):
        figures.save(drawn, tmp_path / f"a.{kind}", dpi=60)
        figures.save(drawn, tmp_path / f"b.{kind}", dpi=60)
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_fonts_in_a_pdf_are_outlines_that_can_be_searched(tmp_path):
    figures.save(DRAWN["timing-1"](), tmp_path / "a.pdf")
    assert b"/Type3" not in (tmp_path / "a.pdf").read_bytes()


def test_the_style_is_left_behind():
    inside = matplotlib.rcParams["svg.hashsalt"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        before = dict(matplotlib.rcParams)
        with figures.style():
            assert matplotlib.rcParams["svg.hashsalt"] == inside != before["svg.hashsalt"]
        assert dict(matplotlib.rcParams) == before


# --- what the pictures show


def test_bars_are_as_long_as_the_accuracies():
    table = tuned("AB")
    table["accuracy"] = [0.25, 0.75]
    axis = one.finetune_accuracy(table).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.25, 0.75]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["A", "B"]


def test_rows_of_a_confusion_matrix_are_shares_of_their_class():
    drawn = one.confusion(np.array([[3, 1], [0, 0]]), classes(2))
    shown = [text.get_text() for text in drawn.axes[0].texts]
    assert shown == ["0.75", "0.25", "0.00", "0.00"]


def test_every_point_of_an_embedding_is_drawn_in_its_classes_colour():
    points = np.random.default_rng(0).random((65 * 2, 2))
    labels = np.arange(65 * 2) % 65
    drawn = one.embedding({"a": points}, labels, classes(65))
    groups = drawn.axes[0].collections
    found = np.concatenate([group.get_offsets() for group in groups])
    assert len(groups) == 65 and len(found) == len(points)
    for number, group in enumerate(groups):
        np.testing.assert_allclose(np.asarray(group.get_offsets()), points[labels == number])
    looks = {(tuple(g.get_facecolor()[0]), g.get_paths()[0].vertices.tobytes()) for g in groups}
    assert len(looks) == 65


def test_an_overlay_colours_each_segment_and_leaves_gaps_alone():
    labels = np.full((12, 12), -1)
    labels[2:6, 2:6], labels[6:10, 2:6] = 0, 1
    picture = image(12)
    mixed = two.outlined(picture, labels)
    assert mixed.shape == (12, 12, 3) and mixed.min() >= 0 and mixed.max() <= 1
    np.testing.assert_allclose(mixed[8:, 8:], picture[8:, 8:] / 255)
    assert (mixed[2, 2:6] == 1).all() and (mixed[6, 2:6] == 1).all()  # outlines are white
    tints = [(mixed - 0.55 * picture / 255)[row, 4] for row in (4, 8)]
    assert np.abs(tints[0] - tints[1]).max() > 0.1
    assert np.array_equal(mixed, two.outlined(picture, labels))


def test_cut_outs_are_the_largest_masks_on_white():
    picture = np.full((30, 30, 3), 7, dtype=np.uint8)
    masks = np.zeros((12, 30, 30), dtype=bool)
    for number in range(12):
        masks[number, number, : number + 1] = True  # the first three are left out
    sheet = two.cut_outs(picture, masks)
    assert sheet.shape == (30, 30, 3)
    filled = (sheet == 7).all(axis=-1)
    assert (filled | (sheet == 255).all(axis=-1)).all()
    per_cell = filled.reshape(3, 10, 3, 10).any(axis=(1, 3))
    assert per_cell.all()
    assert not (two.cut_outs(picture, masks[:0]) != 255).any()


@pytest.mark.parametrize("side", [16, 33, 128])
def test_cut_outs_fit_their_cells(side):
    """However long and thin a mask is."""
    masks = np.zeros((3, side, side), dtype=bool)
    masks[0, 0], masks[1, :, 1], masks[2] = True, True, True
    sheet = two.cut_outs(np.zeros((side, side, 3), dtype=np.uint8), masks)
    cell = side // 3
    for number in range(3):
        inside = sheet[:cell, number * cell : (number + 1) * cell]
        assert (inside == 0).any() and (inside[0] == 255).all() and (inside[:, -1] == 255).all()


def test_the_largest_share_is_written_on_its_bar():
    axis = two.pixel_shares({"train": np.array([0.5, 0.03, 0.47, 0, 0, 0, 0])}).axes[0]
    assert [text.get_text() for text in axis.texts] == ["50%", "47%"]


# --- segmentation


def test_the_curves_show_the_control_on_the_miou_alone():
    """As a line over the whole panel, at its height and named."""
    drawn = two.segmentation_curves(
        {name: history(5) for name in segmenters.NAMES}, segmenters.NAMES, 0.4321
    )
    loss, miou = drawn.axes
    assert len(loss.lines) == 3 and len(miou.lines) == 4
    level = miou.lines[-1]
    assert set(level.get_ydata()) == {0.4321} and list(level.get_xdata()) == [0, 1]
    assert [text.get_text() for text in miou.texts] == ["colours alone"]
    for line, name in zip(miou.lines, segmenters.NAMES):
        assert line.get_label() == segmenters.NAMES[name]
        assert line.get_ydata() == pytest.approx(history(5)["miou"])
    low, high = miou.get_ylim()
    assert low <= 0.4321 <= high


def test_bars_of_the_classes_are_as_high_as_their_iou():
    """A group for each class that any model has, a bar for each model, the control as a line."""
    random = np.random.default_rng(0)
    values = {
        name: {c: float(v) for c, v in zip(SCORED, random.random(6))}
        for name in (*segmenters.NAMES, "colour")
    }
    for of_model in values.values():
        of_model["urban"] = None  # it occurs nowhere
    axis = two.class_iou(values, segmenters.NAMES).axes[0]
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert shown == list(SCORED[1:])
    assert axis.get_ylim() == (0, 1)
    for container, model in zip(axis.containers, segmenters.NAMES):
        assert container.get_label() == segmenters.NAMES[model]
        heights = [bar.get_height() for bar in container]
        assert heights == [values[model][name] for name in shown]
        centres = [bar.get_x() + bar.get_width() / 2 for bar in container]
        assert np.abs(np.array(centres) - np.arange(5)).max() < 0.5  # over their own class
    levels = [lines.get_segments()[0] for lines in axis.collections]
    assert [level[0, 1] for level in levels] == [values["colour"][name] for name in shown]
    assert all(low < place < high for place, ((low, _), (high, _)) in enumerate(levels))
    edges = sorted(
        (bar.get_x(), bar.get_x() + bar.get_width()) for c in axis.containers for bar in c
    )
    assert all(end <= start + 1e-9 for (_, end), (start, _) in zip(edges, edges[1:]))


def test_the_confusion_of_pixels_shows_the_classes_that_occur(monkeypatch):
    """In labels or in predictions; a row is a true class, and counts stand where they were."""
    matrix = np.zeros((7, 7), dtype=int)
    matrix[1, 1], matrix[1, 4], matrix[6, 4], matrix[3, 3] = 5, 2, 3, 7
    book = SimpleNamespace(
        profile=profiles.get("smoke"),
        metrics=lambda step: {"segment-lraspp": {"confusion_last": matrix.tolist()}}[step],
    )
    drawn = []
    monkeypatch.setattr(gallery.one, "confusion", lambda *words: drawn.append(words))
    gallery.confusion_pixels(book)
    ((shown, names, title),) = drawn
    assert names == [CLASSES[number] for number in (1, 3, 4, 6)]
    assert shown.tolist() == [[5, 0, 2, 0], [0, 7, 0, 0], [0, 0, 0, 0], [0, 0, 3, 0]]
    assert segmenters.NAMES["lraspp"] in title


@pytest.mark.parametrize("names", [["slic"], list(METHODS)])
def test_everything_masks_show_the_model_then_each_method_then_the_truth(names):
    methods = {name: METHODS[name] for name in names}
    rows = mask_rows(2, methods)
    for row, data in enumerate(rows):
        data |= {"model": land(seed=50 + row), "truth": land(seed=60 + row)}
        for place, name in enumerate(names):
            data[name] = data[name] | {"vote": land(seed=10 * row + place), "masks": 7 + place}
    drawn = two.everything_masks(rows, methods)
    columns = 3 + 2 * len(names)
    for row, data in enumerate(rows):
        line = drawn.axes[row * columns : (row + 1) * columns]
        pictures = [np.asarray(axis.images[0].get_array()) for axis in line]
        assert np.array_equal(pictures[0], data["image"])
        assert np.array_equal(pictures[1], PALETTE[data["model"]])
        assert np.array_equal(pictures[-1], PALETTE[data["truth"]])
        for place, name in enumerate(names):
            assert np.array_equal(pictures[3 + 2 * place], PALETTE[data[name]["vote"]])
            assert line[2 + 2 * place].get_xlabel() == f"{7 + place} masks"
        assert line[0].get_ylabel() == data["number"]
    titles = [axis.get_title() for axis in drawn.axes[:columns]]
    between = [text for name in names for text in (METHODS[name], "its vote")]
    assert titles == ["image", "model", *between, "truth"]
    assert not any(axis.get_title() for axis in drawn.axes[columns:])


# --- pre-training


def panels(drawn):
    """The visible axes by title."""
    return {axis.get_title(): axis for axis in drawn.axes if axis.get_visible()}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_pretraining_has_a_panel_for_what_was_measured(labelled, trained):
    """No probe without labels; no supervised loss where the backbone came from a file."""
    columns = {"knn": np.linspace(0.2, 0.6, 4)} if labelled else {}
    own = history(4)
    drawn = one.pretraining_curves(
        history(4, **columns), BEFORE | ({"knn": 0.3} if labelled else {}),
        own if trained else None,
    )
    found = panels(drawn)
    assert len(found) == 4 + labelled + trained
    assert any("k-NN" in title for title in found) == labelled
    assert any("supervised loss" == title for title in found) == trained
    for title, axis in found.items():
        assert axis.lines[0].get_xdata().tolist() == [1, 2, 3, 4], title
        assert axis.get_ylim()[0] == 0
    if labelled:
        (axis,) = (axis for title, axis in found.items() if "k-NN" in title)
        assert axis.lines[0].get_ydata() == pytest.approx(columns["knn"])


@pytest.mark.parametrize("start", [0.01, 0.9, 400.0])
def test_the_random_backbones_line_is_inside_its_panel(start):
    """Also where training only loses what was there, as a collapse does."""
    before = {"deviation": min(start, 1.0), "effective_rank": start, "knn": min(start, 1.0)}
    falling = history(4, effective_rank=[9.0, 4, 2, 1.5], knn=[0.5, 0.4, 0.3, 0.2])
    drawn = one.pretraining_curves(falling, before)
    dotted = 0
    for title, axis in panels(drawn).items():
        low, high = axis.get_ylim()
        for line in axis.lines:
            assert low <= min(line.get_ydata()) <= max(line.get_ydata()) <= high, title
        dotted += axis.get_legend() is not None
    assert dotted == 3


def test_progress_draws_every_number_but_the_rate_and_the_epoch():
    rows = [ROW | {"epoch": n, "loss": 1 / n} for n in (1, 2, 3)]
    drawn = figures.progress("pretrain", rows)
    assert set(panels(drawn)) == {"loss", "knn", "deviation"}
    line = panels(drawn)["loss"].lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata() == pytest.approx([1, 1 / 2, 1 / 3])
    assert drawn.get_suptitle() == "pretrain"


@pytest.mark.parametrize("name", ["progress-1", "confused_pairs-none", "tiles-1"])
def test_a_picture_of_bytes_is_a_png_and_the_same_again(name):
    first, second = (figures.png(DRAWN[name](), dpi=40) for _ in range(2))
    assert first == second and first.startswith(b"\x89PNG")
    assert matplotlib.__version__.encode() not in first


# --- confused pairs and embeddings


def test_confused_pairs_have_a_row_for_each_direction():
    rows = [("Mug", "Couch", 5, [image()] * 3), ("Couch", "Mug", 1, [image()]),
            ("Mug", "Fan", 0, [])]
    drawn = one.confused_pairs(rows, 4)
    shown = [[bool(axis.images) for axis in drawn.axes[4 * row : 4 * row + 4]] for row in range(3)]
    assert [sum(row) for row in shown] == [3, 1, 0]
    labels = [drawn.axes[4 * row].get_ylabel() for row in range(3)]
    for (truth, taken, count, _), label in zip(rows, labels):
        assert " ".join(label.split()) == f"{truth} taken for {taken}: {count}"


def test_without_confusion_it_says_so():
    drawn = one.confused_pairs([], 8)
    assert not any(axis.images for axis in drawn.axes)
    assert "no image" in drawn.axes[0].texts[0].get_text()


def test_panels_of_an_embedding_share_one_frame():
    """A distance means the same in both, and no point is cut off."""
    random = np.random.default_rng(0)
    planes = {"first": random.random((30, 2)), "last": 5 + 20 * random.random((30, 2))}
    drawn = one.embedding(planes, np.arange(30) % 3, classes(3))
    first, last = drawn.axes[:2]
    assert first.get_shared_x_axes().joined(first, last)
    assert first.get_shared_y_axes().joined(first, last)
    drawn.draw_without_rendering()
    assert first.get_xlim() == last.get_xlim() and first.get_ylim() == last.get_ylim()
    points = np.concatenate(list(planes.values()))
    for side, (low, high) in enumerate((first.get_xlim(), first.get_ylim())):
        assert low < points[:, side].min() and points[:, side].max() < high
