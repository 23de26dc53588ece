"""Figures that several chapters share, and figures as files: byte-identical in three formats."""

import matplotlib
import numpy as np
import pytest

from hw1lib.chapters import style
from tests.chapters.made import assert_drawn, classes, image

ROW = {"epoch": 1, "loss": 1.5, "lr": 0.1, "knn": 0.4, "deviation": 0.1, "confusion": [[1]]}

FIGURES = {
    "grid-1": lambda: style.image_grid({"a": [image()]}),
    "grid-ragged": lambda: style.image_grid({"$x$": [image(8, 16)], "b_^": [image()] * 12}),
    "timing-1": lambda: style.timing({"pretrain": 0.0}),
    "timing-19": lambda: style.timing(dict(zip(classes(19), np.geomspace(0.1, 1e5, 19)))),
    "progress-1": lambda: style.progress("pretrain", [ROW]),
    "progress-800": lambda: style.progress("control", [{"epoch": n, "loss": 1 / n, "lr": 0.1} for n in range(1, 801)]),
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
@pytest.mark.parametrize("name", ["grid-1", "progress-1"])
def test_files_are_byte_identical(name, tmp_path):
    """Dates, versions and random names are the usual leaks; an earlier save does not matter either."""
    one, other = FIGURES[name](), FIGURES[name]()
    for kind, begin in (("png", b"\x89PNG"), ("pdf", b"%PDF-"), ("svg", b"<?xml")):
        written = []
        for place, figure in enumerate((one, one, other)):
            style.save(figure, tmp_path / f"{place}.{kind}", dpi=60)
            written.append((tmp_path / f"{place}.{kind}").read_bytes())
        assert len(set(written)) == 1 and written[0].startswith(begin)
        assert matplotlib.__version__.encode() not in written[0].replace(b"svg11.dtd", b"")
        assert b"/Type3" not in written[0]  # fonts are outlines that can be searched
        style.save(other, tmp_path / "once more.png", dpi=60)
    assert len(list(tmp_path.iterdir())) == 3 * 3 + 1  # no temporary file is left
