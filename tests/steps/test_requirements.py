"""What a run needs is checked before anything trains; defaults that do not fit the data fall back."""

import shutil
import time
from functools import partial

import pytest
import torch
from torchvision.models import resnet18, resnet50

from hw1lib import profiles
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.models import pretrained, weights
from hw1lib.settings import flatten
from hw1lib.steps import requirements
from hw1lib.steps import run as steps
from hw1lib.steps.store import Store
from tests.conftest import refused, run, write_problem2

CPU = torch.device("cpu")
FIT = {"segmentation.stage_images": "0001"} | {f"{name}.crop": 0 for name in ("fcn32s", "lraspp", "deeplabv3")}
WHOLE = {"model_scale": 1, "supervised.source": "auto"}


@pytest.fixture(autouse=True)
def nothing_else(tmp_path, monkeypatch):
    """No weights of this machine, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weights, "find_sam", partial(weights.find_sam, tmp_path / "weights"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "weights").mkdir()


def made(root, out, settings=()):
    profile = profiles.get("smoke", dict(settings))
    data = layout.find(root, profile.data)
    return steps.Steps(requirements.fitted(profile, data, settings)[0], data, Store(out), CPU)


def refusal(root, out, settings=(), names=None):
    """The text of everything that is wrong; empty where nothing is. It comes soon, and nothing is computed."""
    planned = made(root, out, settings)
    before = time.process_time()
    try:
        requirements.refuse([(planned, name) for name in names or planned.all])
    except UserError as error:
        assert time.process_time() - before < 3 and not list(out.glob("steps/*/*/*"))
        return str(error)
    return ""


def unlabelled(root):
    (root / "p1_data" / "mini" / "train.csv").unlink()


def backbone(content):
    """A function that puts a file in the place of the course's supervised backbone."""

    def put(root):
        path = root / "p1_data" / "pretrain_model_SL.pt"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content(), path)

    return put


def sam(content):
    def put(root):
        (root.parent / "weights" / "sam_vit_b_01ec64.pth").write_bytes(content)

    return put


def no_harm(root):
    pass


NEEDS = {  # what is done to the data, settings, and words of the refusal
    "nosl": (unlabelled, {}, ["Settings B and D", "mini/train.csv"]),
    "nosl, whole": (unlabelled, WHOLE, ["pretrain_model_SL.pt", "mini/train.csv", "supervised.source=imagenet"]),
    "nosl, pool": (unlabelled, WHOLE | {"supervised.source": "pool"}, ["pretrain_model_SL.pt", "data/README.md"]),
    "no file": (no_harm, WHOLE | {"supervised.source": "file"}, ["has no pretrain_model_SL.pt", "source=pool"]),
    "shrunk": (no_harm, {"supervised.source": "imagenet"}, ["profile smoke", "model_scale=0.25", "source=pool"]),
    "offline": (no_harm, WHOLE | {"supervised.source": "imagenet"}, ["cannot be reached", "source=pool", "cache"]),
    "empty": (backbone(b""), WHOLE, ["pretrain_model_SL.pt", "it is empty"]),
    "page": (backbone(b"<!DOCTYPE html>"), WHOLE, ["pretrain_model_SL.pt", "web page"]),
    "resnet18": (backbone(lambda: resnet18().state_dict()), WHOLE, ["holds 122 tensors", "layer1.0.conv1.weight"]),
    "pickled": (backbone(resnet18), WHOLE, ["would run code", "state_dict()"]),
    "pretrained": (no_harm, {"model_scale": 1, "lraspp.pretrained": True}, ["LR-ASPP", "lraspp.pretrained=false"]),
    "vgg": (no_harm, {"model_scale": 1, "fcn32s.pretrained": True}, ["vgg16-", "fcn32s.pretrained=false"]),
    "stages": (no_harm, {"segmentation.stage_images": "0001,0077"}, ["segmentation.stage_images", "'0077'", "0003"]),
    "images": (no_harm, {"everything.images": "9"}, ["everything.images", "'9'", "0001"]),
    "crop": (no_harm, {"lraspp.crop": 33}, ["lraspp.crop=33", "32 × 32", "0 for whole tiles"]),
    "segments": (no_harm, {"everything.segments": 2000}, ["everything.segments=2000", "1,024 pixels"]),
    "no sam": (no_harm, {"everything.refine": "sam"}, ["everything.refine=sam", "weights fetch sam_vit_b"]),
    "empty sam": (sam(b""), {}, ["sam_vit_b_01ec64.pth", "it is empty", "weights fetch"]),
    "cut sam": (sam(b"PK\3\4" + bytes(999)), {}, ["sam_vit_b_01ec64.pth", "damaged"]),
    "processes": (no_harm, {"lraspp.processes": 3}, ["segment-lraspp: 4 images", "3 processes", "lraspp.accumulate"]),
    "parts": (no_harm, {"finetune.accumulate": 4, "finetune.processes": 9}, ["finetune-C: 8 images", "9 processes"]),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_a_later_step_needs_is_asked_for_at_once(course_data, tmp_path, case):
    harm, settings, words = NEEDS[case]
    assert refusal(course_data, tmp_path / "out", FIT) == ""
    harm(course_data)
    text = refusal(course_data, tmp_path / "out", FIT | settings)
    assert [word for word in words if word not in text] == [] and "\n" not in text
    assert "things must be fixed" not in text or case in ("parts", "processes")


def test_all_problems_come_at_once_and_only_those_of_the_steps_to_run(course_data, tmp_path, capsys):
    unlabelled(course_data)
    settings = FIT | {"lraspp.crop": 99, "everything.refine": "sam"}
    text = refusal(course_data, tmp_path / "out", settings)
    assert [
        word for word in ("3 things", "(1)", "(3)", "B and D", "lraspp.crop=99", "refine=sam") if word not in text
    ] == []
    assert "crop" not in refusal(course_data, tmp_path / "out", settings, ["pretrain-supervised"])
    words = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    text = refused(capsys, "run", "finetune-D", *words)  # nor is what it builds on begun
    assert "B and D" in text and not list(tmp_path.glob("out/steps/*"))
    for command in ("report", "plan"):
        code, _, said = run(capsys, command, *words, "--set", "everything.refine=sam")
        assert code == 1 and "2 things must be fixed" in said and "B and D" in said and "refine=sam" in said
    assert run(capsys, "run", "control-colour", *words)[0] == 0


def test_a_finished_step_needs_nothing_any_more(course_data, tmp_path):
    """Such as a network for weights that it has loaded."""
    settings = FIT | WHOLE | {"supervised.source": "imagenet"}
    cache = pretrained.cached(pretrained.IMAGENET)
    cache.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), cache)
    assert refusal(course_data, tmp_path / "out", settings, ["pretrain-supervised"]) == ""
    made(course_data, tmp_path / "out", settings).result("pretrain-supervised")
    cache.write_bytes(b"<html>")
    again = made(course_data, tmp_path / "out", settings)
    requirements.refuse([(again, "pretrain-supervised")])
    with pytest.raises(UserError, match="web page"):
        requirements.refuse([(made(course_data, tmp_path / "other", settings), "pretrain-supervised")])


@pytest.mark.parametrize("out", ["file", "file/below", "full"])
def test_a_build_folder_that_cannot_take_the_results_is_named(course_data, tmp_path, monkeypatch, out):
    (tmp_path / "file").touch()
    words = ["--out", str(tmp_path / "file")]
    if out == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=2_500_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        assert refusal(course_data, tmp_path / out / "new", FIT | {"model_scale": 1}, ["segment-lraspp"]) == ""
        words = ["2.5 GB are free", "--out", str(tmp_path / out)]
    settings = FIT | {"model_scale": 1, "supervised.source": "pool"}
    text = refusal(course_data, tmp_path / out, settings, ["segment-fcn32s"])
    assert [word for word in words if word not in text] == []
    if out == "full":  # 184,671,054 weights, Adam's two moments, and the checkpoint before beside the new one
        assert 5.1 < float(text.partition(" needs ")[2].partition(" GB")[0]) < 5.3


# --- defaults that do not fit


NUMBERS = [(["21717", "255876", "266", "9"], 3), (["7", "8"], 2), (["x"], 1), (["0001", "0003", "0005"], 0)]


@pytest.mark.parametrize(("numbers", "stages"), NUMBERS)
def test_default_tile_numbers_fall_back_to_the_first_tiles(tmp_path, capsys, numbers, stages):
    """With one sentence, in the step's key; where they fit nothing changes. What the user names stays."""
    root = tmp_path / "data"
    write_problem2(root / "p2_data", validation=len(numbers))
    tiles = sorted((root / "p2_data" / "validation").glob("*_sat.jpg"))
    for old, new in [*zip(tiles, numbers)][::-1]:
        for path in (old, old.with_name(old.name.replace("sat.jpg", "mask.png"))):
            path.rename(path.with_name(path.name.replace(old.name[:4], new)))
    whole = {f"{name}.crop": 0 for name in ("fcn32s", "lraspp", "deeplabv3")}
    profile = profiles.get("smoke", whole)
    data = layout.find(root, profile.data)
    fitted, warnings = requirements.fitted(profile, data)
    if not stages:
        assert fitted.segmentation == profile.segmentation and "stage_images" not in " ".join(warnings)
        return
    assert fitted.segmentation.stage_images == data.problem2.validation.numbers[:stages]
    assert fitted.everything.images == data.problem2.validation.numbers[:stages] and len(warnings) == 2
    others = {"segmentation.stage_images", "everything.images"}
    assert flatten(fitted) == flatten(profile) | {name: flatten(fitted)[name] for name in others}
    chosen = ",".join(fitted.everything.images)
    explicit = profiles.get("smoke", whole | dict.fromkeys(others, chosen))
    same = [steps.Steps(each, data, Store(tmp_path), CPU) for each in (fitted, explicit)]
    assert {name: same[0].key(name) for name in same[0].all} == {name: same[1].key(name) for name in same[1].all}
    code, out, _ = run(capsys, "plan", "--profile", "smoke", "--data-root", root, "--out", tmp_path / "out")
    assert code == 0 and " ".join(out.split()).count(f"segmentation.stage_images={chosen}") == 1
    text = refused(capsys, "plan", "--profile", "smoke", "--data-root", root, "--set", "everything.images=0001,0002")
    assert "everything.images" in text and numbers[0] in text
    code, out, _ = run(capsys, "data", "check", "--data-root", root)
    assert f"everything.images={chosen}" in " ".join(out.split())


# --- what is given but not used


def test_optional_files_that_match_nothing_are_named_once(course_data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "weights"
    for name in ("sam_vit_b.pth", "sam_vit_b_01ec64.pth.1", "notes.txt", ".hidden"):
        (folder / name).touch()
    for name in ("sam_vit_base", "sam-vit-huge"):
        (folder / name).mkdir()
    (folder / "sam-vit-huge" / "config.json").touch()
    texts = list(weights.unused(folder))
    assert len(texts) == 5 and not list(weights.unused(tmp_path / "nothing"))
    for name, words in {
        "sam_vit_b.pth": "Did you mean sam_vit_b_01ec64.pth?", "sam_vit_b_01ec64.pth.1": "sam_vit_b_01ec64.pth?",
        "sam_vit_base": "Did you mean sam-vit-base?", "sam-vit-huge": "it lacks model.safetensors", "notes.txt": "SAM",
    }.items():  # fmt: skip
        assert sum(f"{folder / name} is not used" in text and words in text for text in texts) == 1, name

    data = layout.find(course_data, profiles.get("smoke").data)
    assert list(requirements.unused(data, folder=False)) == []
    odd = ["pretrain_model_sl.pt", "pretrain_model_SL.pth", "backbone.safetensors"]
    for name in odd:
        (course_data / "p1_data" / name).touch()
    (course_data / "pretrain_model_SL.pt").touch()  # a folder too high
    texts = list(requirements.unused(data, folder=False))
    assert len(texts) == 4 and all(sum(f"/{name} is not used" in text for text in texts) == 1 for name in odd)
    for command in (["plan", "--profile", "smoke", "--out", tmp_path / "out"], ["data", "check"]):
        code, out, _ = run(capsys, *command, "--data-root", course_data)
        assert code == 0 and " ".join(out.split()).count("pretrain_model_sl.pt is not used") == 1
