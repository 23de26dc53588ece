"""Checks at the start of a run: files, weights, settings that must suit the data, and disk space."""

import functools
import shutil
import tempfile

import torch
from PIL import Image

from hw1lib.errors import UserError, remedy
from hw1lib.loops import distributed
from hw1lib.models import pretrained, resnet, sam, segmenters, weights
from hw1lib.settings import flatten, replace

# --- problems of a step, each a sentence with a remedy


def supervised(profile, problem1, source):
    """Yield what is missing for the supervised backbone, whose source is "file", "pool" or "imagenet"."""
    root, file = problem1.pool.folder.parent.parent, problem1.supervised_backbone
    if source == "pool":
        if problem1.pool.labelled() is None:
            yield (
                f"Settings B and D need a supervised backbone, but mini/train.csv in {root} has no labels. "
                "Add them, or for model_scale=1 add pretrain_model_SL.pt (data/README.md) or choose "
                "--set supervised.source=imagenet, which the course forbids."
            )
    elif profile.model_scale != 1:
        yield (
            f"supervised.source={source} is a full-size ResNet50, but profile {profile.name} shrinks it "
            f"(model_scale={profile.model_scale}). Choose --set supervised.source=pool."
        )
    elif source == "imagenet":
        yield from _download("supervised.source=imagenet", pretrained.IMAGENET, "supervised.source=pool")
    elif file is None:
        advice = "Put it there, or choose --set supervised.source=pool."
        yield f"supervised.source=file: {root} has no pretrain_model_SL.pt. {advice}"
    else:
        yield from _message(pretrained.load_backbone, file)


def segmentation(name, profile, problem2):
    """Yield what is wrong with a segmentation model's settings, or that its pretrained weights cannot be downloaded."""
    settings, (width, height) = getattr(profile, name), _tile_size(problem2.train)
    for number in profile.segmentation.stage_images:
        yield from _message(problem2.validation.index, number, "segmentation.stage_images")
    if settings.crop > min(width, height) > 0:
        advice = "Make it smaller, or 0 for whole tiles."
        yield f"{name}.crop={settings.crop} does not fit into tiles of {width} × {height} pixels. {advice}"
    if settings.pretrained and profile.model_scale == 1:
        what = f"The weights of {segmenters.SEGMENTERS[name].full}"
        yield from _download(what, segmenters.SEGMENTERS[name].url, f"{name}.pretrained=false")


def everything(profile, problem2, sam_path):
    """Yield what is wrong with the settings of everything mode; `sam_path` is the path of SAM's weights, or None."""
    settings, (width, height) = profile.everything, _tile_size(problem2.validation)
    for number in settings.images:
        yield from _message(problem2.validation.index, number, "everything.images")
    if settings.segments > width * height > 0:
        advice = "Choose fewer, or 0 for half the tile's side."
        yield f"everything.segments={settings.segments}, but a tile has {width * height:,} pixels. {advice}"
    if sam_path is not None:
        yield from _message(sam.load, sam_path)
    elif settings.refine == "sam":
        yield f"everything.refine=sam: {weights.SAM_HINT}"


def _processes(step, device):
    """Yield why the processes of a step cannot share its batches, or cannot have a GPU each."""
    group, settings = next(iter(step.settings)), step.training
    images, processes = step.images, max(settings.processes, distributed.world_size())
    if getattr(settings, "hold_out", False):
        images -= images // 10  # held out for the k-NN probe
    images = min(settings.micro_batch, images)
    if images < 2 * processes > 2:
        yield (
            f"{step.name}: {images} images in a micro-batch are too few for {processes} processes, which need two "
            f"each. Lower {group}.processes or {group}.accumulate, or use more images."
        )
    if device.type == "cuda" and settings.processes > torch.cuda.device_count():
        yield f"{group}.processes={settings.processes}: this machine has {torch.cuda.device_count()} GPUs. Lower it."


def _download(what, url, instead):
    """Yield that a file is neither cached nor can be downloaded; `instead` is a setting that does without it."""
    try:
        pretrained.check_download(url)
    except ValueError as error:
        copy = f"put the file into torch's cache, {pretrained.cached(url).parent}"
        yield f"{what}: {error}. Connect to the network, {copy}, or choose --set {instead}."


def _message(check, *arguments):
    """Yield the text of the UserError that a check raises, if it raises one."""
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)


def _tile_size(tiles):
    """Return (width, height) of a split's first tile without decoding it; (0, 0) if it cannot be read."""
    try:
        with Image.open(tiles.sat(tiles.numbers[0])) as image:
            return image.size
    except OSError:
        return 0, 0  # the check of the data reports it


# --- problems of a run


def refuse(planned, also=(), writes=True):
    """Raise a UserError that names everything that keeps steps from running.

    Args:
        planned: (run.Steps, name) of each step; finished steps need nothing.
        also: sentences about other problems, such as those of the report's own files.
        writes: whether the build folder will be written to.
    """
    # status() hashes the data of a step, so it is skipped for a step without results.
    planned = [(steps, n) for steps, n in planned if not (steps.store.results(n) and steps.status(n) == "done")]
    if problems := list(dict.fromkeys([*also, *_problems(planned, writes)])):
        numbered = " ".join(f"({number}) {text}" for number, text in enumerate(problems, 1))
        several = f"{len(problems)} problems must be fixed first. {numbered}"
        raise UserError(several if len(problems) > 1 else problems[0])


def _problems(planned, writes):
    for name, steps in {name: steps for steps, name in planned}.items():  # once for all seeds
        step = steps.step(name)
        yield from step.requirements()
        if step.parallel:
            yield from _processes(step, steps.device)
    if planned and writes:
        yield from _folder(planned)


def _folder(planned):
    """Yield why the build folder cannot be written to, or that its disk is too small for results and a checkpoint."""
    out = planned[0][0].store.out
    folder = next(path for path in (out / "steps", out, *out.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        text = f"The build folder {out} cannot be used: {folder}: {error.strerror}."
        yield f"{text} {remedy(error)} --out chooses another."
        return
    free = shutil.disk_usage(folder).free
    free += sum(path.stat().st_size for path in out.glob("steps/*/*/checkpoint.pt"))  # these are overwritten
    results, checkpoints = zip(*(_bytes_of(steps.step(name), steps.profile.model_scale) for steps, name in planned))
    # A checkpoint is written before the last one is deleted.
    needed = _decoded_bytes(planned[0][0]) + sum(results) + 2 * max(checkpoints)
    if needed > free:
        yield (
            f"{out} needs {needed / 1e9:.1f} GB for results and checkpoints, but {free / 1e9:.1f} GB are free. Free "
            "some disk space, or choose a folder on another disk with --out (make: OUT=…)."
        )


def _bytes_of(step, scale):
    """Return the bytes of a step's weights, and an upper bound for its checkpoint with optimizer state, in float32."""
    if not step.network:
        return 0, 0
    settings = step.training
    weights = trained = _count_weights(step.network, scale)
    if step.name == "pretrain":
        trained += settings.projection_hidden_size * (resnet.FEATURES + 3 * settings.projection_size)
    average = getattr(settings, "use_momentum", False) or getattr(settings, "average", 0) > 0
    moments = 1 if settings.optimizer == "sgd" else 2
    return 4 * weights, 4 * trained * (1 + moments + average)


@functools.cache
def _count_weights(network, scale):
    with torch.device("meta"):
        module = resnet.backbone(scale) if network == "backbone" else segmenters.build(network, scale)
    return sum(parameter.numel() for parameter in module.parameters())


def _decoded_bytes(steps):
    """Return the bytes of predicted masks, and of decoded images that are not in the build folder yet."""
    images, tiles = steps.data.problem1, steps.data.problem2
    count = sum(map(len, (images.pool, images.train, images.val))) if images else 0
    width, height = _tile_size(tiles.train) if tiles else (0, 0)
    tile_pixels = (len(tiles.train) + 4 * len(tiles.validation)) * width * height if tiles else 0
    existing = sum(path.stat().st_size for path in steps.store.out.glob("decoded/*.npy"))
    return max(0, 3 * count * steps.profile.data.image_size**2 + 4 * tile_pixels - existing)


# --- settings and files that do not suit the data


def fit(profile, data, explicit=()):
    """Replace defaults that do not suit the data: tile numbers by the first tiles, crops by whole tiles.

    Args:
        profile: settings.Profile.
        data: layout.Layout.
        explicit: dotted names of settings that the user chose, which stay as they are.

    Returns:
        The profile, and a sentence for each setting that was replaced.
    """
    if data.problem2 is None:
        return profile, []
    settings, suitable, warnings = flatten(profile), {}, []
    tiles, side = data.problem2.validation.numbers, min(_tile_size(data.problem2.train))
    for name in ("segmentation.stage_images", "everything.images"):
        if absent := [number for number in settings[name] if number not in tiles]:
            verb = "is" if len(absent) == 1 else "are"
            reason = f"{', '.join(absent)} {verb} not among the {len(tiles):,} tiles"
            suitable[name] = tiles[: len(settings[name])], reason
    for name, value in settings.items():
        if name.endswith(".crop") and value > side > 0:
            suitable[name] = 0, f"{value} exceeds the side of the tiles"
    for name, (value, reason) in suitable.items():
        if name not in explicit:
            profile = replace(profile, name, value)
            used = f"{name}={','.join(value)}" if value else f"{name}=0 (whole tiles)"
            warnings.append(f"{name} of profile {profile.name}: {reason}; {used} is used. To choose: --set {name}=…")
    return profile, warnings


def unused(data, folder=True):
    """Yield a sentence for each optional file that is present but not used.

    Args:
        data: layout.Layout.
        folder: whether to search the folder of weights as well.
    """
    folders = [data.root / "p1_data", data.root] if data.problem1 else []
    for path in (path for parent in folders for path in sorted(parent.glob("[!.]*"))):
        is_weights = path.name.lower().startswith("pretrain") or path.suffix.lower() in (".pt", ".pth", ".safetensors")
        if is_weights and path != data.problem1.supervised_backbone:
            yield f"{path} is not used: the supervised backbone must be {folders[0]}/pretrain_model_SL.pt."
    yield from weights.unused() if folder else ()
