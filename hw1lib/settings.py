"""All settings of a profile, with their types, ranges and defaults.

The key of a step is a hash of the settings that the step reads, so changing a setting runs exactly the steps that
depend on it.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, Field

from hw1lib.errors import UserError, did_you_mean

DESCRIPTION = {"about", "ours", "needs_data"}  # with the name, the fields of a profile that are not settings
MAX_EXACT = 2**53  # JSON readers that use floats hold larger whole numbers inexactly

Limit = Annotated[int, Field(ge=0, le=MAX_EXACT)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Separated = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
Names = Annotated[tuple[str, ...], Separated, Field(min_length=1)]


class Group(BaseModel):
    """Settings that belong together; immutable, and checked when created."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_strip_whitespace=True)


class Data(Group):
    """How much of the data is used, and at what size; a limit of 0 means no limit."""

    image_size: int = Field(128, ge=8, le=4096)  # Problem 1: shorter side after resizing, then a square crop
    overhead: bool = False  # images seen from above: vertical flips and quarter turns are valid augmentations
    pool_limit: Limit = 0  # images of the pre-training pool
    office_limit: Limit = 0  # images of each Office split, evenly over the classes
    tile_limit: Limit = 0  # satellite tiles of each split


class Optimization(Group):
    """Settings of every training step."""

    epochs: Count = 10
    batch_size: int = Field(64, ge=2, le=MAX_EXACT)
    accumulate: Count = 1  # micro-batches per batch, to save memory; BatchNorm sees one micro-batch at a time
    processes: int = Field(1, ge=1, le=1024, exclude=True)  # processes that share each batch, started by torchrun
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # sgd has momentum 0.9
    lr: float = Field(1e-3, gt=0, le=1e30)
    weight_decay: NonNegative = 0.0  # with adamw and sgd, not applied to biases and normalisation layers
    schedule: Literal["constant", "cosine"] = "constant"  # cosine decays to nearly zero
    warmup_epochs: NonNegative = 0.0
    # auto: bfloat16 on devices that accelerate it, float16 on other GPUs, else float32
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False  # torch.compile the loss: a minute at the start, faster steps on a GPU
    augmentation: Literal["batched", "original"] = "batched"  # original: the transforms of the original report

    @property
    def micro_batch(self):
        """Number of images in a micro-batch."""
        return max(2, self.batch_size // self.accumulate)


class Pretrain(Optimization):
    """Self-supervised pre-training: BYOL; the last four are arguments of byol-pytorch's constructor."""

    views: Literal["byol", "geometry"] = "byol"  # as in Grill et al.; geometry leaves colours unchanged
    crop_scale: float = Field(0.2, ge=0.01, le=1)  # smallest fraction of the area that a view shows; BYOL: 0.08
    one_pass: bool = True  # both views in one forward pass, with the same loss; False: byol-pytorch's own forward
    probe_every: Count = 1  # epochs between k-NN probes; the last epoch always has one
    hold_out: bool = True  # keep the k-NN probe's queries out of training
    use_momentum: bool = False  # False: no target network, as in SimSiam
    moving_average_decay: Fraction = 0.99  # with one_pass, raised to 1 along a cosine
    projection_size: Width = 256
    projection_hidden_size: Width = 4096


class Supervised(Optimization):
    """The supervised backbone of settings B and D: read from a file, or trained on the labelled pool.

    Source "auto" is pretrain_model_SL.pt if the data has it, else "pool". Source "imagenet" means torchvision's
    weights, which the course forbids for pre-training; the report says so.
    """

    source: Literal["auto", "file", "pool", "imagenet"] = "auto"


class Finetune(Optimization):
    """Fine-tuning on Office, with the same head and schedule in settings A–E."""

    hidden: Width = 256
    dropout: Fraction = 0.5
    standardise: bool = True  # frozen backbones: scale features to zero mean and unit standard deviation
    augment_frozen: bool = False  # frozen backbones: draw new augmentations every epoch, as the original did


class Controls(Group):
    """Controls that settings A–E are compared with."""

    knn: Count = 5  # neighbours of the k-NN control


class Embed(Group):
    """PCA and t-SNE of the second-last layer of one setting."""

    setting: Literal["C", "A", "B", "D", "E"] = "C"
    perplexity: float = Field(30.0, ge=1, le=MAX_EXACT)


class Segment(Optimization):
    """Training of a segmentation model."""

    augmentation: Literal["batched", "none"] = "batched"
    pretrained: bool = False  # start from torchvision's ImageNet or COCO weights
    norm_momentum: Fraction = 0.1  # of BatchNorm; 0: torchvision's
    crop: Limit = 0  # side of training crops in pixels; 0: whole tiles
    crop_scale: float = Field(1.0, ge=0.01, le=1)  # for whole tiles: smallest fraction that is enlarged to fill a tile
    enlarge: int = Field(1, ge=1, le=8)  # factor by which tiles are enlarged for the network
    jitter: Fraction = 0.2  # of brightness, contrast and saturation; a tenth of it for hue
    loss: Literal["cross_entropy", "lovasz"] = "cross_entropy"  # lovasz: cross-entropy + Lovász-Softmax
    balance: Fraction = 0.0  # class weight = frequency ** -balance
    average: float = Field(0.0, ge=0, le=0.99999)  # decay of the moving average of weights; 0: none
    tta: bool = False  # also score the mean prediction over eight flips and turns


class Segmentation(Group):
    """The model and the tiles that the report shows for Problem 2."""

    improved: Literal["deeplabv3", "lraspp", "fcn32s"] = "deeplabv3"  # model shown in stages
    stage_images: Names = ("0013", "0062", "0104")


class Everything(Group):
    """SAM's everything mode and the classical segmenters; most names are those of SamAutomaticMaskGenerator."""

    images: Names = ("0001", "0002", "0003")
    points_per_side: int = Field(32, ge=1, le=256)
    points_per_batch: int = Field(64, ge=1, le=256**2)
    pred_iou_thresh: Fraction = 0.88
    stability_score_thresh: Fraction = 0.95
    box_nms_thresh: Fraction = 0.7
    stability_score_offset: NonNegative = 1.0
    crop_n_layers: int = Field(0, ge=0, le=4)  # layer 1 has 4 crops, layer 2 has 16, …
    crop_overlap_ratio: Fraction = 512 / 1500
    crop_n_points_downscale_factor: Count = 1
    crop_nms_thresh: Fraction = 0.7
    min_mask_region_area: Limit = 0  # remove smaller islands and fill smaller holes; 0: neither
    segments: Limit = 0  # number of superpixels of the classical segmenters; 0: half the side of a tile
    refine: Literal["auto", "sam", "slic", "felzenszwalb"] = "auto"  # method whose masks vote on all tiles
    compare: bool = False  # whether SLIC and Felzenszwalb vote on all tiles, too


class Profile(Group):
    """A complete set of settings, and what a report says about it."""

    name: str
    about: str
    ours: tuple[str, ...] = ()  # choices that the original report leaves open; printed in the report
    seed: int = Field(0, ge=0, le=2**31)  # with `seeds` below the 2**32 that NumPy accepts
    seeds: int = Field(1, ge=1, le=1000)  # number of seeds, from `seed` on
    only: Literal["", "problem1", "problem2"] = Field("", exclude=True)  # run only one problem
    device: str = "auto"  # auto, cpu, cuda, …; not part of the result
    threads: int = Field(0, ge=0, le=1024, exclude=True)  # CPU threads of a process; 0: torch's default
    checkpoint_every: NonNegative = 60.0  # seconds between checkpoints
    tf32: bool = True  # multiply float32 on a GPU's tensor cores, with 10-bit mantissas
    cudnn_benchmark: bool = True  # let cuDNN choose the fastest algorithm; runs then differ in rounding
    model_scale: float = Field(1.0, ge=0.05, le=1)  # less than 1 shrinks the width and depth of networks
    zero_init_residual: bool = False  # start every residual block as the identity (Goyal et al. 2017)
    needs_data: bool = False  # whether --data-root must name the real course data
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


def flatten(profile):
    """Return the settings of a profile as a dict from dotted name, such as "pretrain.epochs", to value."""
    values = {}
    for name, value in profile:
        if isinstance(value, Group):
            values |= {f"{name}.{inner}": setting for inner, setting in value}
        elif name not in {"name", *DESCRIPTION}:
            values[name] = value
    return values


def result_settings(part):
    """Return the settings of a profile or group that affect the result, as a nested dict of plain data."""
    values = part.model_dump()  # without the fields that are declared with exclude=True
    return values | {"device": None} if isinstance(part, Profile) else values


def replace(profile, dotted, value):
    """Return a profile with one setting replaced.

    Args:
        profile: Profile.
        dotted: name of the setting, such as pretrain.epochs.
        value: new value; text is converted to the setting's type.

    Raises:
        UserError: there is no such setting, or the value has the wrong type or is out of range.
    """
    known = flatten(profile)
    group, _, name = dotted.rpartition(".")
    if dotted not in known:
        siblings = [other for other in known if other.startswith(f"{dotted.partition('.')[0]}.")]
        choices = ", ".join(siblings or dict.fromkeys(other.partition(".")[0] for other in known))
        raise UserError(f"There is no setting {dotted!r}. Choose one of {choices}.{did_you_mean(dotted, known)}")

    part = assign(getattr(profile, group) if group else profile, name, value, dotted)
    return profile.model_copy(update={group: part}) if group else part


def assign(part, name, value, dotted=None):
    """Return a profile or group with one field replaced and checked; `dotted` is the field's name in messages."""
    try:
        if isinstance(value, int | float | str):  # pydantic would take true for 1
            value = str(value).strip()
        return type(part)(**dict(part) | {name: value})
    except ValueError as error:  # pydantic's, or Python's own about integers of thousands of digits
        reason = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
        given = f"{dotted or name}={value:.80}" if isinstance(value, str) else dotted or name
        raise UserError(f"Setting {given}: {reason.replace('Input', 'its value', 1)}.") from error
