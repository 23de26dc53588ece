"""All settings: frozen dataclasses, and how one of them is replaced by name.

Each step's key is a hash of the part of the settings that the step reads, so a changed setting
runs exactly the steps that depend on it.
"""

import dataclasses
import sys
import types
import typing
from dataclasses import dataclass, field

from hw1lib.errors import UserError

FIXED = ("name", "about", "ours", "needs_data")  # no settings: they say what a profile is


def within(default, low, high=sys.float_info.max):
    """A number between `low` and `high`, both allowed."""
    return field(default=default, metadata={"low": low, "high": high})


def one_of(default, *choices):
    """One of a few words."""
    return field(default=default, metadata={"choices": (default, *choices)})


@dataclass(frozen=True)
class Data:
    """How much of the data is used, and at what size; a limit of 0 means all of it."""

    image_size: int = within(128, 8)  # Problem 1: shorter side after resizing, then a square crop
    overhead: bool = False  # seen from above: vertical flips and quarter turns change nothing
    pool_limit: int = within(0, 0)  # images of the pre-training pool
    office_limit: int = within(0, 0)  # images of each Office split, evenly over the classes
    tile_limit: int = within(0, 0)  # satellite tiles of each split


@dataclass(frozen=True)
class Optimization:
    """What every training step has."""

    epochs: int = within(10, 1)
    batch_size: int = within(64, 2)
    optimizer: str = one_of("adam", "adamw", "sgd")  # sgd: momentum 0.9
    lr: float = within(1e-3, 0)
    weight_decay: float = within(0.0, 0)  # adamw and sgd: not on biases and norms
    schedule: str = one_of("constant", "cosine")  # cosine: to zero
    warmup_epochs: float = within(0.0, 0)
    precision: str = one_of("auto", "float32")  # auto: bfloat16 where the device is fast at it
    augmentation: str = one_of("batched", "original")  # drawn per image, or the original's own


@dataclass(frozen=True)
class Pretrain(Optimization):
    """BYOL on byol-pytorch's networks; the last four names are those of its constructor."""

    views: str = one_of("byol", "geometry")  # augment.VIEWS: Grill et al.'s; no change of colour
    crop_scale: float = within(0.2, 0.01, 1)  # smallest share of the area in a view; BYOL: 0.08
    zero_init_residual: bool = False  # the backbone's blocks begin as identity (Goyal et al. 2017)
    one_pass: bool = True  # our forward, equal to the package's; False: the package's own
    hold_out: bool = True  # the k-NN probe's queries are kept out of training
    use_momentum: bool = False  # False: SimSiam's way
    moving_average_decay: float = within(0.99, 0, 1)  # one_pass: raised to 1 along a cosine
    projection_size: int = within(256, 1)
    projection_hidden_size: int = within(4096, 1)


@dataclass(frozen=True)
class Supervised(Optimization):
    """Where the backbone of settings B and D comes from; training it is one of the ways.

    auto is the data's pretrain_model_SL.pt where that is there, else the labelled pool. imagenet
    are torchvision's weights, which the course forbids for pre-training: the report flags them.
    """

    source: str = one_of("auto", "file", "pool", "imagenet")


@dataclass(frozen=True)
class Finetune(Optimization):
    """Fine-tuning on Office: one head and one schedule for all settings."""

    hidden: int = within(256, 1)
    dropout: float = within(0.5, 0, 1)
    standardise: bool = True  # frozen settings: features to zero mean and unit deviation
    augment_frozen: bool = False  # frozen settings: draw augmentation each epoch, as the seed did


@dataclass(frozen=True)
class Controls:
    """What the settings A–E must beat, beside the same head on weaker inputs."""

    knn: int = within(5, 1)  # neighbours of the k-NN control


@dataclass(frozen=True)
class Embed:
    """PCA and t-SNE of one setting's second-last layer."""

    setting: str = one_of("C", "A", "B", "D", "E")
    perplexity: float = within(30.0, 1)


@dataclass(frozen=True)
class Segment(Optimization):
    """Training of one segmentation model."""

    augmentation: str = one_of("batched", "none")
    pretrained: bool = False  # start from torchvision's ImageNet or COCO weights
    norm_momentum: float = within(0.1, 0, 1)  # BatchNorm; 0: torchvision's
    crop: int = within(0, 0)  # side of the training crops in pixels; 0: the whole tile
    crop_scale: float = within(1.0, 0.01, 1)  # whole tiles: smallest share enlarged to fill it
    enlarge: int = within(1, 1, 8)  # the network sees tiles enlarged so many times
    jitter: float = within(0.2, 0, 1)  # brightness, contrast, saturation; hue a tenth of it
    loss: str = one_of("cross_entropy", "focal", "dice", "lovasz")  # the last two: added to CE
    balance: float = within(0.0, 0, 1)  # weight of a class: its frequency to the power of minus it
    average: float = within(0.0, 0, 0.99999)  # decay of the weights' moving average; 0: none
    tta: bool = False  # also score the mean over eight flips and turns of each tile


@dataclass(frozen=True)
class Segmentation:
    """What is shown of Problem 2."""

    improved: str = one_of("deeplabv3", "lraspp", "fcn32s")  # shown in stages
    stage_images: tuple[str, ...] = ("0013", "0062", "0104")


@dataclass(frozen=True)
class Everything:
    """SAM's automatic mask generation, and the classical segmenters beside it."""

    images: tuple[str, ...] = ("0001", "0002", "0003")
    points_per_side: int = within(32, 1)
    points_per_batch: int = within(64, 1)
    pred_iou_thresh: float = within(0.88, 0, 1)
    stability_score_thresh: float = within(0.95, 0, 1)
    box_nms_thresh: float = within(0.7, 0, 1)
    stability_score_offset: float = within(1.0, 0)
    crop_n_layers: int = within(0, 0)  # layer 1 has 4 crops, layer 2 has 16 …
    crop_overlap_ratio: float = within(512 / 1500, 0, 1)
    crop_n_points_downscale_factor: int = within(1, 1)
    crop_nms_thresh: float = within(0.7, 0, 1)
    min_mask_region_area: int = within(0, 0)  # smaller islands go, smaller holes fill; 0: neither
    segments: int = within(0, 0)  # of the classical segmenters; 0: half the tile's side
    refine: str = one_of("auto", "sam", "slic", "felzenszwalb")  # whose masks vote on all tiles


@dataclass(frozen=True)
class Profile:
    """One complete set of settings."""

    name: str
    about: str
    ours: tuple[str, ...] = ()  # choices where the original is silent, for the report
    seed: int = within(0, 0)
    seeds: int = within(1, 1)  # Problem 1 is repeated with this many, from `seed` on
    device: str = "auto"  # auto, cpu, cuda …: where it runs, no part of what it computes
    checkpoint_every: float = within(60.0, 0)  # seconds between checkpoints of a training step
    model_scale: float = within(1.0, 0.05, 1)  # 1: real; less shrinks width and depth
    needs_data: bool = False  # True: only for real course data, --data-root must be given
    data: Data = field(default_factory=Data)
    pretrain: Pretrain = field(default_factory=Pretrain)
    supervised: Supervised = field(default_factory=Supervised)
    finetune: Finetune = field(default_factory=Finetune)
    controls: Controls = field(default_factory=Controls)
    embed: Embed = field(default_factory=Embed)
    fcn32s: Segment = field(default_factory=Segment)
    lraspp: Segment = field(default_factory=Segment)
    deeplabv3: Segment = field(default_factory=Segment)
    segmentation: Segmentation = field(default_factory=Segmentation)
    everything: Everything = field(default_factory=Everything)


def replaced(part, dotted, value):
    """A group of settings with one of them replaced.

    Args:
        part: dataclass, such as a Profile.
        dotted: name of the setting, such as pretrain.epochs.
        value: new value; text is turned into the setting's own type.

    Raises:
        UserError: there is no such setting, or the value is of the wrong type or out of range.
    """
    return _replaced(part, dotted, dotted.split("."), value)


def _replaced(part, dotted, names, value):
    kinds = typing.get_type_hints(type(part))
    if names[0] not in kinds or names[0] in FIXED:
        known = ", ".join(n for n in kinds if n not in FIXED)
        raise UserError(f"There is no setting {dotted!r}; at {names[0]!r} there are: {known}.")
    current = getattr(part, names[0])
    if len(names) > 1:
        if not dataclasses.is_dataclass(current):
            raise UserError(f"Setting {dotted!r}: {names[0]!r} has no settings of its own.")
        new = _replaced(current, dotted, names[1:], value)
    elif dataclasses.is_dataclass(current):
        inside = ", ".join(f"{dotted}.{f.name}" for f in dataclasses.fields(current))
        raise UserError(f"{dotted!r} is a group of settings; name one of {inside}.")
    else:
        new = _converted(kinds[names[0]], dotted, value)
        _check(type(part).__dataclass_fields__[names[0]].metadata, dotted, new)
    return dataclasses.replace(part, **{names[0]: new})


def _converted(kind, dotted, value):
    """Turns text or JSON into the setting's own type."""
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        if not isinstance(value, (str, list, tuple)):
            raise UserError(f"Setting {dotted}={value}: give a list of texts.")
        items = value.split(",") if isinstance(value, str) else value
        if not items:
            raise UserError(f"Setting {dotted}: the list is empty.")
        return tuple(_text(item, dotted) for item in items)
    text = _text(value, dotted)
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in words:
            return words[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise UserError(f"Setting {dotted}={text}: this is not a value of type {kind.__name__}.")


def _text(value, dotted):
    try:
        return str(value).strip()
    except ValueError as error:  # whole numbers of thousands of digits
        raise UserError(f"Setting {dotted}: its value cannot be read ({error}).") from error


def _check(allowed, dotted, value):
    """Holds a value against what its field allows."""
    choices = allowed.get("choices")
    if choices and value not in choices:
        raise UserError(f"Setting {dotted}={value}: choose one of {', '.join(choices)}.")
    low, high = allowed.get("low"), allowed.get("high")
    if low is not None and not low <= value <= high:  # nan is in no range
        most = f" and at most {high:g}" if high < sys.float_info.max else ""
        raise UserError(f"Setting {dotted}={value}: it must be at least {low:g}{most}.")
