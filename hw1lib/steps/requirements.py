"""What a run needs, checked in its first second: files, weights, settings that must suit the data, disk space."""

import functools
import shutil
import tempfile

import torch
from PIL import Image

from hw1lib.errors import UserError, remedy
from hw1lib.loops import distributed, pretrain
from hw1lib.models import pretrained, resnet, segmenters, weights
from hw1lib.settings import replace
from hw1lib.variants import ROWS

SHOWN = (("segmentation", "stage_images"), ("everything", "images"))  # settings that name validation tiles


def fitted(profile, data, explicit=()):
    """Replace defaults that do not fit the data: tile numbers by its first tiles, crops by whole tiles.

    Args:
        profile: settings.Profile.
        data: layout.Layout.
        explicit: dotted names of settings that the user chose, which stay as they are.

    Returns:
        The profile, and a sentence for each setting that was replaced.
    """
    if data.problem2 is None:
        return profile, []
    instead, warnings, tiles, size = {}, [], data.problem2.validation, _tile_size(data.problem2.train)
    for group, name in SHOWN:
        numbers = getattr(getattr(profile, group), name)
        if absent := [number for number in numbers if number not in tiles.numbers]:
            which = f"names {', '.join(absent)}, not among the {len(tiles):,} tiles in use"
            text = f"p2_data/validation: by default {group}.{name} {which}"
            instead[f"{group}.{name}"] = tiles.numbers[: len(numbers)], text
    for name in segmenters.SEGMENTERS:
        if (crop := getattr(profile, name).crop) > min(size) > 0:
            instead[f"{name}.crop"] = 0, f"p2_data/train: by default {name}.crop is {crop}, more than the tiles have"
    for dotted, (value, text) in instead.items():
        if dotted not in explicit:
            profile = replace(profile, dotted, value)
            shown = ",".join(value) if value else "0 (whole tiles)"
            warnings.append(f"{text}. Used instead: {dotted}={shown}; to choose otherwise: --set {dotted}=…")
    return profile, warnings


def refuse(planned, also=(), writes=True):
    """Raise one UserError that names everything that keeps steps from running.

    Args:
        planned: (run.Steps, name) of each step; those that are done need nothing.
        also: sentences about other problems, such as the report's own files.
        writes: whether results will be written, so that the build folder must take them.
    """
    planned = list(planned)
    problems = list(_problems(planned, writes))
    if problems:  # only now, as a step's state is known once its data is hashed
        planned = [(steps, n) for steps, n in planned if not (steps.store.results(n) and steps.status(n) == "done")]
        problems = list(_problems(planned, writes))
    if problems := list(dict.fromkeys([*also, *problems])):
        numbered = [f"({number}) {text}" for number, text in enumerate(problems, 1)]
        several = f"{len(problems)} things must be fixed before this can run. {' '.join(numbered)}"
        raise UserError(several if len(problems) > 1 else problems[0])


def of_data(profile, data):
    """Sentences about what a run of all settings on this data would refuse."""
    return list(_supervised(profile, data.problem1)) if data.problem1 else []


def unused(data, folder=True):
    """Sentences that name optional files that are given but not used.

    Args:
        data: layout.Layout.
        folder: whether to look through the folder of weights, too.
    """
    places = [data.root / "p1_data", data.root] if data.problem1 else []
    for path in (path for place in places for path in sorted(place.glob("[!.]*"))):
        similar = path.name.lower().startswith("pretrain") or path.suffix.lower() in (".pt", ".pth", ".safetensors")
        if similar and path != data.problem1.supervised_backbone:
            yield f"{path} is not used: the supervised backbone is looked for as {places[0]}/pretrain_model_SL.pt."
    yield from weights.unused() if folder else ()


def _problems(planned, writes):
    """Sentences, each with its remedy."""
    if not planned:
        return
    steps = planned[0][0]
    profile, data, names = steps.profile, steps.data, {name for _, name in planned}
    if "pretrain-supervised" in names:
        yield from _supervised(profile, data.problem1)
    for name in segmenters.SEGMENTERS:
        if f"segment-{name}" in names:
            yield from _segmentation(name, profile, data.problem2)
    if "everything" in names:
        yield from _everything(profile, data.problem2)
    for name in sorted(names):
        step = steps.step(name)
        if step.parallel:
            yield from _processes(name, step.reads[0], profile, data, steps.device)
    yield from _folder(planned) if writes else ()


def _supervised(profile, problem1):
    source, file = pretrain.supervised_source(profile, problem1), problem1.supervised_backbone
    root, shrunk = problem1.pool.folder.parent.parent, profile.model_scale != 1
    if source == "pool":
        if problem1.pool.labelled() is None:
            other = "" if shrunk else ", or choose --set supervised.source=imagenet, which the course forbids"
            wanted = "labels of the pool in mini/train.csv"
            wanted = wanted if shrunk else f"pretrain_model_SL.pt nor {wanted}"
            has = f"{root} has no {wanted}" if shrunk else f"{root} has neither {wanted}"
            yield f"Settings B and D need a supervised backbone, but {has}. Add it (data/README.md){other}."
    elif shrunk:
        yield (
            f"supervised.source={source} is a whole ResNet50, but profile {profile.name} shrinks it "
            f"(model_scale={profile.model_scale}). Choose --set supervised.source=pool."
        )
    elif source == "imagenet":
        yield from _download("supervised.source=imagenet", pretrained.IMAGENET, "supervised.source=pool")
    elif file is None:
        yield (
            f"supervised.source=file: {root} has no pretrain_model_SL.pt. Put it there, or choose --set "
            "supervised.source=pool."
        )
    else:
        yield from _raised(pretrained.load_backbone, file)


def _segmentation(name, profile, problem2):
    settings = getattr(profile, name)
    for number in profile.segmentation.stage_images:
        yield from _raised(problem2.validation.index, number, "segmentation.stage_images")
    size = _tile_size(problem2.train)
    if settings.crop > min(size) > 0:
        fits = f"{name}.crop={settings.crop} does not fit into tiles of {size[0]} × {size[1]} pixels."
        yield f"{fits} Make it smaller, or 0 for whole tiles."
    if settings.pretrained and profile.model_scale == 1:
        url = segmenters.PRETRAINED[name]
        yield from _download(f"The weights of {segmenters.SEGMENTERS[name].full}", url, f"{name}.pretrained=false")


def _everything(profile, problem2):
    settings, sam = profile.everything, weights.find_sam()
    for number in settings.images:
        yield from _raised(problem2.validation.index, number, "everything.images")
    width, height = _tile_size(problem2.validation)
    if settings.segments > width * height > 0:
        pixels = f"a tile has {width * height:,} pixels"
        yield f"everything.segments={settings.segments}: {pixels}, so ask for fewer, or 0 for half the tile's side."
    if sam is not None:
        yield from _raised(weights.check_sam, sam)
    elif settings.refine == "sam":
        yield f"everything.refine=sam: {weights.SAM_HINT}"


def _processes(name, group, profile, data, device):
    """Whether each process gets a part of every batch, and a GPU."""
    settings = getattr(profile, group)
    processes = max(settings.processes, distributed.world_size())
    trained_on = {"pretrain": "pool", "supervised": "pool", "finetune": "train"}.get(group)
    images = len(getattr(data.problem1, trained_on) if trained_on else data.problem2.train)
    at_a_time = min(settings.micro_batch, images - images // 10 if group == "pretrain" else images)
    if at_a_time < 2 * processes > 2:
        yield (
            f"{name}: {at_a_time} images at a time do not go round {processes} processes, two each. Lower "
            f"{group}.processes or {group}.accumulate, or use more images."
        )
    if device.type == "cuda" and settings.processes > torch.cuda.device_count():
        yield f"{group}.processes={processes}: this machine has {torch.cuda.device_count()} GPUs. Ask for no more."


def _download(what, url, instead):
    """One sentence where a file of torchvision's weights is neither in torch's cache nor to be had."""
    try:
        pretrained.check_download(url)
    except ValueError as error:
        place = f"put the file into torch's cache, {pretrained.cached(url).parent}"
        yield f"{what}: {error}. Connect to the network, {place}, or choose --set {instead}."


def _raised(check, *arguments):
    """The text of the UserError that a check raises."""
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)


def _tile_size(tiles):
    """Width and height of a split's first tile, whose pixels are not decoded."""
    try:
        with Image.open(tiles.sat(tiles.numbers[0])) as image:
            return image.size
    except OSError:
        return 0, 0  # the check of the data says what is wrong with it


# --- the build folder


def _folder(planned):
    """Whether the build folder can be written, and its disk takes the results and the largest checkpoint."""
    out = planned[0][0].store.out
    folder = next(path for path in (out / "steps", out, *out.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        yield f"The build folder {out} cannot be used: {folder}: {error.strerror}. {remedy(error)} --out names another."
        return
    free = shutil.disk_usage(folder).free
    free += sum(path.stat().st_size for path in out.glob("steps/*/*/checkpoint.pt"))  # is replaced
    needed = _bytes_needed(planned)
    if needed > free:
        yield (
            f"{out} needs {needed / 1e9:.1f} GB for results and checkpoints, but {free / 1e9:.1f} GB are free. Free "
            "some disk space, or choose a folder on another disk with --out (make: OUT=…)."
        )


def _bytes_needed(planned):
    """Bytes that steps write at most, one after the other: results, decoded images, and a checkpoint being replaced."""
    kept = _decoded_bytes(planned[0][0])
    peak = kept
    for steps, name in planned:
        result, checkpoint = _bytes_of(name, steps.profile, steps.data)
        peak = max(peak, kept + result + 2 * checkpoint)
        kept += result
    return max(peak, kept)


def _bytes_of(name, profile, data):
    """Bytes of a step's results, and of its checkpoint: weights and the optimizer's moments, in float32."""
    whole, kind = _weights_of("backbone", profile.model_scale), name.partition("-")[2]
    if name == "pretrain":
        settings, result = profile.pretrain, whole
        heads = settings.projection_hidden_size * (resnet.FEATURES + 3 * settings.projection_size)
        trained = whole + heads
        still = trained if settings.use_momentum else 0
    elif name == "pretrain-supervised":
        settings, result, still = profile.supervised, whole, 0
        trained = whole if pretrain.supervised_source(profile, data.problem1) == "pool" else 0
    elif kind in segmenters.SEGMENTERS:
        settings, result = getattr(profile, kind), _weights_of(kind, profile.model_scale)
        trained, still = result, result if settings.average else 0
    elif name == "control-random" or name.startswith("finetune-"):
        settings, result, still = profile.finetune, whole, 0
        frozen = next(row.frozen for row in ROWS.values() if row.step == name)
        trained = 0 if frozen and not settings.augment_frozen else whole
    else:
        return 0, 0
    moments = 1 if settings.optimizer == "sgd" else 2
    return 4 * result, 4 * (trained * (1 + moments) + still)


@functools.cache
def _weights_of(name, scale):
    """How many weights a network has, of which no values are made."""
    with torch.device("meta"):
        network = resnet.backbone(scale) if name == "backbone" else segmenters.build(name, scale)
    return sum(parameter.numel() for parameter in network.parameters())


def _decoded_bytes(steps):
    """Bytes of the decoded images that are not in the build folder yet, and of predicted masks."""
    one, two = steps.data.problem1, steps.data.problem2
    squares = sum(map(len, (one.pool, one.train, one.val))) * steps.profile.data.image_size**2 if one else 0
    width, height = _tile_size(two.train) if two else (0, 0)
    tiles = (len(two.train) + 4 * len(two.validation)) * width * height if two else 0
    existing = sum(path.stat().st_size for path in steps.store.out.glob("decoded/*.npy"))
    return max(0, 3 * squares + 4 * tiles - existing)
