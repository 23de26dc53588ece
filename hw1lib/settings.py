"""All settings: frozen dataclasses that pydantic holds to their types and ranges, and how one is replaced by name.

Each step's key is a hash of the part of the settings that the step reads, so a changed setting
runs exactly the steps that depend on it.
"""

import dataclasses
from functools import partial
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field

from hw1lib.errors import UserError, did_you_mean

FIXED = ("name", "about", "ours", "needs_data")  # no settings: they say what a profile is
LARGEST = 2**53  # up to here JSON's numbers are whole ones for everybody

CONFIG = pydantic.ConfigDict(allow_inf_nan=False, str_strip_whitespace=True)
group = partial(pydantic.dataclasses.dataclass, frozen=True, config=CONFIG)
Limit = Annotated[int, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Processes = Annotated[int, Field(ge=1, le=1024)]
Positive = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Separated = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
Names = Annotated[tuple[str, ...], Separated, Field(min_length=1)]


@group
class Data:
    """How much of the data is used, and at what size; a limit of 0 means all of it."""

    image_size: int = Field(128, ge=8, le=4096)  # Problem 1: shorter side after resizing, then a square crop
    overhead: bool = False  # seen from above: vertical flips and quarter turns change nothing
    pool_limit: Limit = 0  # images of the pre-training pool
    office_limit: Limit = 0  # images of each Office split, evenly over the classes
    tile_limit: Limit = 0  # satellite tiles of each split


@group
class Optimization:
    """What every training step has."""

    epochs: Count = 10
    batch_size: int = Field(64, ge=2, le=LARGEST)
    accumulate: Count = 1  # parts that a batch is worked on in, where memory is short; BatchNorm sees one part
    processes: Processes = 1  # that share each batch: such a step starts torchrun by itself
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # sgd: momentum 0.9
    lr: float = Field(1e-3, gt=0, le=1e30)
    weight_decay: Positive = 0.0  # adamw and sgd: not on biases and norms
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: nearly to zero
    warmup_epochs: Positive = 0.0
    # auto: bfloat16 where the device is fast at it, float16 on GPUs without it, else float32
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False  # the loss through torch.compile: a minute at the start, quicker steps on a GPU
    augmentation: Literal["batched", "original"] = "batched"  # drawn per image, or the original's own

    @property
    def at_a_time(self):
        """How many images are worked on at a time."""
        return max(2, self.batch_size // self.accumulate)


@group
class Pretrain(Optimization):
    """BYOL on byol-pytorch's networks; the last four names are those of its constructor."""

    views: Literal["byol", "geometry"] = "byol"  # augment.VIEWS: Grill et al.'s; no change of colour
    crop_scale: float = Field(0.2, ge=0.01, le=1)  # smallest share of the area in a view; BYOL: 0.08
    one_pass: bool = True  # our forward, equal to the package's; False: the package's own
    probe_every: Count = 1  # epochs between two looks of the probe; the last epoch always has one
    hold_out: bool = True  # the k-NN probe's queries are kept out of training
    use_momentum: bool = False  # False: SimSiam's way
    moving_average_decay: Fraction = 0.99  # one_pass: raised to 1 along a cosine
    projection_size: Width = 256
    projection_hidden_size: Width = 4096


@group
class Supervised(Optimization):
    """Where the backbone of settings B and D comes from; training it is one of the ways.

    auto is the data's pretrain_model_SL.pt where that is there, else the labelled pool. imagenet
    are torchvision's weights, which the course forbids for pre-training: the report flags them.
    """

    source: Literal["auto", "file", "pool", "imagenet"] = "auto"


@group
class Finetune(Optimization):
    """Fine-tuning on Office: one head and one schedule for all settings."""

    hidden: Width = 256
    dropout: Fraction = 0.5
    standardise: bool = True  # frozen settings: features to zero mean and unit deviation
    augment_frozen: bool = False  # frozen settings: draw augmentation each epoch, as the seed did


@group
class Controls:
    """What the settings A–E must beat, beside the same head on weaker inputs."""

    knn: Count = 5  # neighbours of the k-NN control


@group
class Embed:
    """PCA and t-SNE of one setting's second-last layer."""

    setting: Literal["C", "A", "B", "D", "E"] = "C"
    perplexity: float = Field(30.0, ge=1, le=LARGEST)


@group
class Segment(Optimization):
    """Training of one segmentation model."""

    augmentation: Literal["batched", "none"] = "batched"
    pretrained: bool = False  # start from torchvision's ImageNet or COCO weights
    norm_momentum: Fraction = 0.1  # BatchNorm; 0: torchvision's
    crop: Limit = 0  # side of the training crops in pixels; 0: the whole tile
    crop_scale: float = Field(1.0, ge=0.01, le=1)  # whole tiles: smallest share enlarged to fill it
    enlarge: int = Field(1, ge=1, le=8)  # the network sees tiles enlarged so many times
    jitter: Fraction = 0.2  # brightness, contrast, saturation; hue a tenth of it
    loss: Literal["cross_entropy", "lovasz"] = "cross_entropy"  # Lovász-Softmax: added to cross-entropy
    balance: Fraction = 0.0  # weight of a class: its frequency to the power of minus it
    average: float = Field(0.0, ge=0, le=0.99999)  # decay of the weights' moving average; 0: none
    tta: bool = False  # also score the mean over eight flips and turns of each tile


@group
class Segmentation:
    """What is shown of Problem 2."""

    improved: Literal["deeplabv3", "lraspp", "fcn32s"] = "deeplabv3"  # shown in stages
    stage_images: Names = ("0013", "0062", "0104")


@group
class Everything:
    """SAM's automatic mask generation, and the classical segmenters beside it."""

    images: Names = ("0001", "0002", "0003")
    points_per_side: int = Field(32, ge=1, le=256)
    points_per_batch: int = Field(64, ge=1, le=256**2)
    pred_iou_thresh: Fraction = 0.88
    stability_score_thresh: Fraction = 0.95
    box_nms_thresh: Fraction = 0.7
    stability_score_offset: Positive = 1.0
    crop_n_layers: int = Field(0, ge=0, le=4)  # layer 1 has 4 crops, layer 2 has 16 …
    crop_overlap_ratio: Fraction = 512 / 1500
    crop_n_points_downscale_factor: Count = 1
    crop_nms_thresh: Fraction = 0.7
    min_mask_region_area: Limit = 0  # smaller islands go, smaller holes fill; 0: neither
    segments: Limit = 0  # of the classical segmenters; 0: half the tile's side
    refine: Literal["auto", "sam", "slic", "felzenszwalb"] = "auto"  # whose masks vote on all tiles
    compare: bool = False  # let SLIC and Felzenszwalb vote on all tiles, too


@group
class Profile:
    """One complete set of settings."""

    name: str
    about: str
    ours: tuple[str, ...] = ()  # choices where the original is silent, for the report
    seed: int = Field(0, ge=0, le=2**31)  # t-SNE takes no larger ones
    seeds: int = Field(1, ge=1, le=1000)  # Problem 1 is repeated with this many, from `seed` on
    only: Literal["", "problem1", "problem2"] = ""  # look at one problem alone
    device: str = "auto"  # auto, cpu, cuda …: where it runs, no part of what it computes
    threads: int = Field(0, ge=0, le=1024)  # of a process on CPUs, as bits depend on them; 0: as many as torch takes
    checkpoint_every: Positive = 60.0  # seconds between checkpoints of a training step
    tf32: bool = True  # float32 products on a GPU's tensor cores: factors of 10 bits
    cudnn_benchmark: bool = True  # cuDNN tries which algorithm is quickest; two runs then differ in rounding
    model_scale: float = Field(1.0, ge=0.05, le=1)  # 1: real; less shrinks width and depth
    zero_init_residual: bool = False  # every ResNet50 begins with its blocks as identity (Goyal et al. 2017)
    needs_data: bool = False  # True: only for real course data, --data-root must be given
    data: Data = Data()
    pretrain: Pretrain = Pretrain()
    supervised: Supervised = Supervised()
    finetune: Finetune = Finetune()
    controls: Controls = Controls()
    embed: Embed = Embed()
    fcn32s: Segment = Segment()
    lraspp: Segment = Segment()
    deeplabv3: Segment = Segment()
    segmentation: Segmentation = Segmentation()
    everything: Everything = Everything()


def plain(profile):
    """A profile as plain data for metrics.json: without where it runs and what is looked at."""
    values = {field.name: getattr(profile, field.name) for field in dataclasses.fields(profile)} | {"device": None}
    del values["only"], values["threads"]
    return {name: counting(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def counting(group):
    """What of a group of settings counts for its results, a dict: all but how many processes it runs on."""
    return {name: value for name, value in dataclasses.asdict(group).items() if name != "processes"}


def leaves(part, above=""):
    """(dotted name, value) of every setting of a profile or a group."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{above}{field.name}.")
        elif field.name not in FIXED:
            yield above + field.name, value


def replaced(part, dotted, value, above=""):
    """A group of settings with one of them replaced.

    Args:
        part: dataclass, such as a Profile.
        dotted: name of the setting, such as pretrain.epochs.
        value: new value; text is turned into the setting's own type.
        above: the groups around `part`, such as "pretrain.".

    Raises:
        UserError: there is no such setting, or the value is of the wrong type or out of range.
    """
    name, dot, inside = dotted.partition(".")
    known = [field.name for field in dataclasses.fields(part) if field.name not in FIXED]
    current = getattr(part, name) if name in known else None
    if dataclasses.is_dataclass(current):
        return dataclasses.replace(part, **{name: replaced(current, inside, value, f"{above}{name}.")})
    dotted = above + dotted
    if name not in known or dot:
        there_are = ", ".join(above + other for other in known)
        similar = did_you_mean(dotted, [other for other, _ in leaves(Profile("", ""))])
        raise UserError(f"There is no setting {dotted!r}; there are: {there_are}.{similar}")

    try:
        if isinstance(value, int | float | str):  # pydantic takes true for 1
            value = str(value).strip()
        return dataclasses.replace(part, **{name: value})
    except ValueError as error:  # pydantic's; and Python's own about whole numbers of thousands of digits
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
        if " than " in reason:  # pydantic names the limit that is passed, not both
            allowed = pydantic.TypeAdapter(type(part)).json_schema()["properties"][name]
            low = f"from {allowed['minimum']}" if "minimum" in allowed else f"above {allowed['exclusiveMinimum']}"
            reason = f"its value should be {low} to {allowed['maximum']}"
        given = f"{dotted}={value}" if isinstance(value, str) else dotted
        raise UserError(f"Setting {given}: {reason.replace('Input', 'its value', 1)}.") from error
