"""What a run needs is checked before anything trains; defaults that do not suit the data are replaced."""

import shutil
import time
from functools import partial

import pytest
import torch
from torchvision.models import resnet50

from hw1lib import profiles
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.models import pretrained, weights
from hw1lib.settings import flatten
from hw1lib.steps import requirements
from tests.conftest import refused, run, write_problem2
from tests.steps.test_run import make

CROPS = {f"{name}.crop": 0 for name in ("fcn32s", "lraspp", "deeplabv3")}
FIT = {"segmentation.stage_images": "0001"} | CROPS
WHOLE = {"model_scale": 1, "supervised.source": "auto"}


@pytest.fixture(autouse=True)
def own_weights(tmp_path, monkeypatch):
    """Hide this machine's weights and network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weights, "find_sam", partial(weights.find_sam, tmp_path / "weights"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "weights").mkdir()


def refusal(root, out, settings=(), names=None):
    """Return the error that lists all problems, or ""; it must come quickly, before anything is computed."""
    steps = make(root, out, settings)
    before = time.process_time()
    try:
        requirements.refuse([(steps, name) for name in names or steps.all])
    except UserError as error:
        assert time.process_time() - before < 3 and not list(out.glob("steps/*/*/*"))
        return str(error)
    return ""


def unlabelled(root):
    (root / "p1_data" / "mini" / "train.csv").unlink()


def backbone(content):
    """Return a function that writes a file in place of the course's supervised backbone."""
    return lambda root: (root / "p1_data" / "pretrain_model_SL.pt").write_bytes(content)


def sam(content):
    return lambda root: (root.parent / "weights" / "sam_vit_b_01ec64.pth").write_bytes(content)


NEEDS = [  # settings, and words of the message
    (WHOLE | {"supervised.source": "file"}, ["has no pretrain_model_SL.pt", "source=pool"]),
    ({"supervised.source": "imagenet"}, ["profile smoke", "model_scale=0.25", "source=pool"]),
    (WHOLE | {"supervised.source": "imagenet"}, ["cannot be reached", "source=pool", "cache"]),
    ({"model_scale": 1, "lraspp.pretrained": True}, ["LR-ASPP", "lraspp.pretrained=false"]),
    ({"segmentation.stage_images": "0001,0077"}, ["segmentation.stage_images", "'0077'", "0003"]),
    ({"everything.images": "9"}, ["everything.images", "'9'", "0001"]),
    ({"lraspp.crop": 33}, ["lraspp.crop=33", "32 × 32", "0 for whole tiles"]),
    ({"everything.segments": 2000}, ["everything.segments=2000", "1,024 pixels"]),
    ({"everything.refine": "sam"}, ["everything.refine=sam", "weights fetch sam_vit_b"]),
    ({"lraspp.processes": 3}, ["segment-lraspp: 4 images", "3 processes", "lraspp.accumulate"]),
    ({"pretrain.processes": 6}, ["pretrain: 11 images", "6 processes"]),
]


@pytest.mark.slow
def test_settings_that_need_what_is_missing_are_refused_at_once(course_data, tmp_path):
    for settings, words in NEEDS:
        text = refusal(course_data, tmp_path / "out", FIT | settings)
        assert [word for word in words if word not in text] == [] and "\n" not in text
        assert "must be fixed" not in text


HARM = {  # what is done to the data, settings, and words of the message
    "nosl": (unlabelled, {}, ["Settings B and D", "mini/train.csv"]),
    "nosl, whole": (unlabelled, WHOLE, ["pretrain_model_SL.pt", "mini/train.csv", "supervised.source=imagenet"]),
    "page": (backbone(b"<!DOCTYPE html>"), WHOLE, ["pretrain_model_SL.pt", "is damaged"]),
    "cut sam": (sam(b"PK\3\4" + bytes(999)), {}, ["sam_vit_b_01ec64.pth", "damaged"]),
}


@pytest.mark.parametrize("case", HARM)
def test_what_a_later_step_needs_is_checked_at_once(course_data, tmp_path, case):
    harm, settings, words = HARM[case]
    harm(course_data)
    text = refusal(course_data, tmp_path / "out", FIT | settings)
    assert [word for word in words if word not in text] == []


@pytest.mark.slow
def test_all_problems_are_named_at_once_but_only_those_of_the_steps_to_run(course_data, tmp_path, capsys):
    assert refusal(course_data, tmp_path / "out", FIT) == ""
    unlabelled(course_data)
    settings = FIT | {"lraspp.crop": 99, "everything.refine": "sam"}
    text = refusal(course_data, tmp_path / "out", settings)
    words = ("3 problems", "(1)", "(3)", "B and D", "lraspp.crop=99", "refine=sam")
    assert [word for word in words if word not in text] == []
    assert "crop" not in refusal(course_data, tmp_path / "out", settings, ["pretrain-supervised"])
    words = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
    text = refused(capsys, "run", "finetune-D", *words)  # before it runs what it builds on
    assert "B and D" in text and not list(tmp_path.glob("out/steps/*"))
    for command in ("report", "plan"):
        code, _, text = run(capsys, command, *words, "--set", "everything.refine=sam")
        assert code == 1 and "2 problems must be fixed" in text and "B and D" in text and "refine=sam" in text
    assert run(capsys, "run", "control-colour", *words)[0] == 0


@pytest.mark.slow
def test_a_finished_step_needs_nothing(course_data, tmp_path):
    """Not even a network connection for weights that it has loaded."""
    settings = FIT | WHOLE | {"supervised.source": "imagenet"}
    cache = pretrained.cached(pretrained.IMAGENET)
    cache.parent.mkdir(parents=True)
    torch.save(resnet50().state_dict(), cache)
    make(course_data, tmp_path / "out", settings).result("pretrain-supervised")
    cache.write_bytes(b"<html>")
    requirements.refuse([(make(course_data, tmp_path / "out", settings), "pretrain-supervised")])
    assert "is damaged" in refusal(course_data, tmp_path / "other", settings, ["pretrain-supervised"])


@pytest.mark.parametrize("out", ["file", "file/below", "full"])
def test_a_build_folder_that_cannot_hold_the_results_is_named(course_data, tmp_path, monkeypatch, out):
    (tmp_path / "file").touch()
    words, settings = ["--out", str(tmp_path / "file")], FIT | {"model_scale": 1, "supervised.source": "pool"}
    if out == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=2_500_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        assert refusal(course_data, tmp_path / out / "new", settings, ["segment-lraspp"]) == ""
        words = ["2.5 GB are free", "--out", str(tmp_path / out)]
    text = refusal(course_data, tmp_path / out, settings, ["segment-fcn32s"])
    assert [word for word in words if word not in text] == []
    if out == "full":  # 184,671,054 weights, Adam's two moments, and two checkpoints for a moment
        assert 5.1 < float(text.partition(" needs ")[2].partition(" GB")[0]) < 5.3


# --- defaults that do not suit the data


NUMBERS = [(["21717", "255876", "266", "9"], 3), (["x"], 1), (["0001", "0003", "0005"], 0)]


@pytest.mark.parametrize(("numbers", "replaced"), NUMBERS)
def test_default_tile_numbers_fall_back_to_the_first_tiles(tmp_path, capsys, numbers, replaced):
    """With a warning, and in the step's key. Numbers that exist, or that the user chose, stay."""
    root, chosen = tmp_path / "data", {"segmentation.stage_images", "everything.images"}
    write_problem2(root / "p2_data", validation=len(numbers))
    for old, new in [*zip(sorted((root / "p2_data" / "validation").glob("*_sat.jpg")), numbers)][::-1]:
        for path in (old, old.with_name(old.name.replace("sat.jpg", "mask.png"))):
            path.rename(path.with_name(path.name.replace(old.name[:4], new)))
    profile = profiles.get("smoke", CROPS)
    data = layout.find(root, profile.data)
    fitted, warnings = requirements.fit(profile, data)
    if not replaced:
        assert fitted.segmentation == profile.segmentation and "stage_images" not in " ".join(warnings)
        return
    first = data.problem2.validation.numbers[:replaced]
    assert flatten(fitted) == flatten(profile) | dict.fromkeys(chosen, first) and len(warnings) == 2
    explicit = make(root, settings=CROPS | dict.fromkeys(chosen, ",".join(first)))
    assert {n: explicit.key(n) for n in explicit.all} == {n: make(root, settings=CROPS).key(n) for n in explicit.all}
    setting, words = f"everything.images={','.join(first)}", ("plan", "--profile", "smoke", "--data-root", root)
    code, out, _ = run(capsys, *words, "--out", tmp_path / "out")
    assert code == 0 and " ".join(out.split()).count(setting) == 1
    text = refused(capsys, *words, "--set", "everything.images=0001,0002")
    assert "everything.images" in text and numbers[0] in text
    assert setting in " ".join(run(capsys, "data", "check", "--data-root", root)[1].split())


def test_optional_files_that_are_not_used_are_named_once(course_data, tmp_path, capsys):
    folder = tmp_path / "weights"
    (folder / "sam-vit-huge").mkdir()
    for name in ("sam_vit_b.pth", "notes.txt", ".hidden", "sam-vit-huge/config.json"):
        (folder / name).touch()
    for place in ("p1_data/pretrain_model_sl.pt", "p1_data/backbone.safetensors", "pretrain_model_SL.pt"):
        (course_data / place).touch()  # the last one a folder too high
    texts = list(requirements.unused(layout.find(course_data, profiles.get("smoke").data), folder=False))
    assert [text.partition(" is not used")[0] for text in texts] == [
        str(course_data / place)
        for place in ("p1_data/backbone.safetensors", "p1_data/pretrain_model_sl.pt", "pretrain_model_SL.pt")
    ]
    texts = {text.partition(" is not used")[0]: text for text in weights.unused(folder)}
    assert texts.keys() == {str(folder / name) for name in ("notes.txt", "sam-vit-huge", "sam_vit_b.pth")}
    assert "Did you mean sam_vit_b_01ec64.pth?" in texts[f"{folder}/sam_vit_b.pth"]
    assert "it lacks model.safetensors" in texts[f"{folder}/sam-vit-huge"] and not [*weights.unused(tmp_path / "no")]
    for command in (["plan", "--profile", "smoke", "--out", tmp_path / "out"], ["data", "check"]):
        code, out, _ = run(capsys, *command, "--data-root", course_data)
        assert code == 0 and " ".join(out.split()).count("pretrain_model_sl.pt is not used") == 1
