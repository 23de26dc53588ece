"""Every figure at its extremes, and figures as files: byte-identical in both formats."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from hw1lib.chapters import architectures, ch00_data, ch01_pretraining, ch02_finetuning, ch03_embeddings, style
from hw1lib.chapters import ch04_segmentation as ch04
from hw1lib.data.landcover import SCORED
from hw1lib.models import segmenters
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.variants import ROWS
from tests.chapters.made import assert_drawn, classes, counted, image

ROW = {"epoch": 1, "loss": 1.5, "lr": 0.1, "knn": 0.4, "deviation": 0.1, "confusion": [[1]]}
MANY = [{"epoch": n, "loss": 1 / n, "lr": 0.1, "deviation": 0.5, "effective_rank": 9.0} for n in range(1, 801)]
ONE_EPOCH = pd.DataFrame({"epoch": [1], "loss": 1.0, "miou": 0.5, "accuracy": 0.5})
IOU = dict.fromkeys(SCORED, 0.5) | {"water": None}
ACCURACIES = pd.DataFrame({"setting": list(ROWS), "accuracy": 1.0, "accuracy_last": 0.0, "ci_low": np.nan})


def points(count, number=130):
    random, names = np.random.default_rng(0), ("first", "last")
    return {title: random.random((number, 2)) for title in names}, np.arange(number) % count, classes(count)


def matrix(count):
    counts = np.eye(count, dtype=int)
    counts[0, 0] = 0  # a class without images
    return ch02_finetuning.confusion(counts, classes(count), "a title")


FIGURES = {
    "grid-1": lambda: style.image_grid({"a": [image()]}),
    "grid-ragged": lambda: style.image_grid({"$x$": [image(8, 16)], "b_^": [image()] * 12}),
    "timing-1": lambda: style.timing({"pretrain": 0.0}),
    "timing-19": lambda: style.timing(dict(zip(classes(19), np.geomspace(0.1, 1e5, 19)))),
    "progress-1": lambda: style.progress("pretrain", [ROW]),
    "progress-800": lambda: style.progress("control", MANY),
    "counts": lambda: ch00_data.class_counts({"training": counted([0, 2], "abc"), "validation": counted([1], "abc")}),
    "frequencies": lambda: ch00_data.frequency_bars({"train": np.eye(7)[0], "validation": np.full(7, 1 / 7)}),
    "pretraining-1": lambda: ch01_pretraining.curves(pd.DataFrame([ROW]), {"deviation": 0.05, "knn": 0.3}, ONE_EPOCH),
    "pretraining-800": lambda: ch01_pretraining.curves(pd.DataFrame(MANY), {"deviation": 0.05}),
    "spectra": lambda: ch01_pretraining.spectra({"few": image()[:2, :, 0], "many": image(40)[:, :12, 0]}),
    "accuracies": lambda: ch02_finetuning.accuracy_bars(ACCURACIES.assign(ci_high=np.nan)),
    "confusion-2": lambda: matrix(2),
    "confusion-65": lambda: matrix(65),
    "finetuning": lambda: ch02_finetuning.curves({"A": ONE_EPOCH, "E": ONE_EPOCH}),
    "scatter-1": lambda: ch03_embeddings.scatter(*points(1, 5)),
    "scatter-65": lambda: ch03_embeddings.scatter(*points(65)),
    "variances": lambda: ch03_embeddings.explained_variance({"a": np.array([6.0, 3, 1]), "b": np.arange(50.0, 0, -1)}),
    "diagram": lambda: architectures.diagram(segmenters.outline("lraspp", 64), "a title"),
    "segmentation": lambda: ch04.curves(dict.fromkeys(SEGMENTERS, ONE_EPOCH), 0.4),
    "ious": lambda: ch04.class_iou({"fcn32s": IOU, "lraspp": IOU | {"urban": None}, "colour": IOU}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_at_its_extremes(name):
    assert_drawn(FIGURES[name]())


@pytest.mark.parametrize(("count", "wanted"), [(1, 8), (5, 8), (65, 8), (1000, 3), (9, 1), (0, 4)])
def test_indices_are_evenly_spaced_from_the_first_to_the_last(count, wanted):
    indices = style.evenly(count, wanted).tolist()
    assert len(indices) == min(count, wanted) and indices == sorted(set(indices))
    if len(indices) > 1:
        assert (indices[0], indices[-1]) == (0, count - 1) and np.ptp(np.diff(indices)) <= 1


@pytest.mark.slow
def test_files_are_byte_identical(tmp_path):
    """Dates, versions and random names are the usual leaks; an earlier save does not matter either."""
    one, other = FIGURES["grid-1"](), FIGURES["grid-1"]()
    for kind, begin in (("png", b"\x89PNG"), ("pdf", b"%PDF-")):
        written = []
        for place, figure in enumerate((one, one, other)):
            style.save(figure, tmp_path / f"{place}.{kind}", dpi=60)
            written.append((tmp_path / f"{place}.{kind}").read_bytes())
        assert len(set(written)) == 1 and written[0].startswith(begin)
        assert matplotlib.__version__.encode() not in written[0]
        assert b"/Type3" not in written[0]  # fonts are outlines that can be searched
    assert len(list(tmp_path.iterdir())) == 3 * 2  # no temporary file is left
