"""The smallest data that trains: all notebooks of Problem 1 run, and what cannot be measured is never "nan"."""

import json

import pytest

from hw1lib import paths
from hw1lib.data.csv_rows import GROUPS
from tests.conftest import refused, write_labelled, write_problem1

NOTEBOOKS = ("00_data", "01_pretraining", "02_finetuning", "03_embeddings")


def run_cells(notebook, **parameters):
    """Run a notebook's code in this process."""
    names = {}
    for cell in json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook, "exec"), names)
            names |= parameters if "parameters" in cell["metadata"].get("tags", []) else {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_image_a_class_two_in_the_pool_and_one_place(tmp_path):
    """All labels are text."""
    root, out = tmp_path / "data", tmp_path / "out"
    write_problem1(root / "p1_data", pool=2, train=1, val=1)
    write_labelled(root / "p1_data/mini/train.csv", [("00001.jpg", "n01532829"), ("00002.jpg", "n02091244")])
    rows = []
    for split in ("train", "val"):
        files = sorted(path.name for path in (root / "p1_data/office" / split).iterdir())
        write_labelled(root / f"p1_data/office/{split}.csv", [(name, name[:-9]) for name in files])
        rows += [f"office/{split},{name},{name if split == 'train' else 'here'}" for name in files]
    (root / GROUPS).write_text("\n".join(["split,filename,group", *rows]))
    for notebook in NOTEBOOKS:
        run_cells(notebook, profile="smoke", data_root=str(root), out=str(out), settings={"device": "cpu"})
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda constant, path=path: pytest.fail(f"{constant} in {path}"))
    for path in [*out.glob("text/*.md"), *out.glob("tables/*.csv")]:
        assert "nan" not in path.read_text().lower().replace("finance", ""), path
    assert "3 validation images of one place" in (out / "text" / "ranking.md").read_text()


TOO_FEW = [  # numbers of pool, train and val images, data.office_limit, and the error (more in test_check)
    ((4, 2, 0), 0, "val.csv has no rows"),
    ((4, 2, 2), 1, "office/train: 1 image in use, but training needs images of two"),
]


@pytest.mark.parametrize(("counts", "limit", "message"), TOO_FEW)
def test_less_data_is_a_clear_error_before_anything_trains(tmp_path, capsys, counts, limit, message):
    write_problem1(tmp_path / "p1_data", *counts)
    options = ["--profile", "smoke", "--data-root", tmp_path, "--out", tmp_path / "out"]
    for command in (("plan",), ("run", "control-simple")):
        assert message in refused(capsys, *command, *options, "--set", f"data.office_limit={limit}")
    assert not list(tmp_path.rglob("checkpoint.pt")) and not list(tmp_path.rglob("done.json"))
