"""The workbook on data in the course's own layout, through the profiles that are made for it."""

import shutil

import pytest
import torch

from hw1lib.errors import UserError
from hw1lib.models import classifier
from hw1lib.workbook import Workbook

SMALL = {
    "model_scale": 0.125, "device": "cpu", "data.image_size": 32,
    "pretrain.epochs": 2, "pretrain.projection_hidden_size": 32, "supervised.epochs": 1,
    "finetune.epochs": 2, "segmentation.stage_images": "0001,0002",
    "everything.images": "0003", "everything.segments": 9,
    **{f"{m}.{s}": v for m in ("fcn32s", "lraspp", "deeplabv3")
       for s, v in (("epochs", 2), ("pretrained", False), ("batch_size", 2))},
}


@pytest.mark.parametrize("profile", ["seed", "strong"])
def test_profiles_for_the_course_data_run_through(profile, course_data, tmp_path):
    """The path of the real run, at small size: both profiles, all steps, on a course layout."""
    book = Workbook(profile, course_data, tmp_path / "out", SMALL)
    for name in book.steps.all:
        book.run(name)
    assert all(book.steps.status(name) == "done" for name in book.steps.all)
    assert book.metrics("finetune-A")["total"] == len(book.data.problem1.val)
    assert book.metrics("pretrain-supervised")["source"] == "pool"


def test_the_courses_backbone_file_is_taken(course_data, tmp_path):
    network = classifier.backbone()
    torch.save(network.state_dict(), course_data / "p1_data" / "pretrain_model_SL.pt")
    settings = {k: v for k, v in SMALL.items() if k != "model_scale"}
    book = Workbook("seed", course_data, tmp_path / "out", settings)
    book.run("pretrain-supervised")
    result = book.result("pretrain-supervised")
    assert result.metrics["source"] == "file"
    assert torch.equal(result.weights()["conv1.weight"], network.conv1.weight)


def test_course_pool_without_labels_or_backbone_says_what_to_add(course_data, tmp_path):
    (course_data / "p1_data" / "mini" / "train.csv").unlink()
    book = Workbook("seed", course_data, tmp_path / "out", SMALL)
    with pytest.raises(UserError, match="pretrain_model_SL.pt"):
        book.run("pretrain-supervised")


def test_one_half_of_the_data_is_enough(course_data, tmp_path):
    shutil.rmtree(course_data / "p1_data")
    book = Workbook("strong", course_data, tmp_path / "out", SMALL)
    assert "absent" in book.figure("office_images").data
    assert set(book.steps.all) == {
        "segment-fcn32s", "segment-lraspp", "segment-deeplabv3", "segment-colour", "everything",
    }
    with pytest.raises(UserError, match="finetune-A"):
        book.run("finetune-A")
