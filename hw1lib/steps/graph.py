"""The steps: what each computes, and from which settings, data and results of other steps.

The key of a step is a hash of exactly these, and of a version that is raised by hand when its code changes its result.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from hw1lib.data.check import doctor
from hw1lib.data.csv_rows import GROUPS
from hw1lib.errors import UserError
from hw1lib.loops import controls, finetune, generate_masks, pretrain, train_segmenter
from hw1lib.metrics import projection
from hw1lib.models import weights
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.settings import Group
from hw1lib.steps import requirements
from hw1lib.variants import ROWS

MAX_ERRORS = 5  # number of errors in the data that a message lists


@dataclass(frozen=True)
class Step:
    """One unit of work whose result is stored.

    Attributes:
        name: such as pretrain or finetune-C.
        problem: 1 or 2.
        run: function(draft, the problem's data, profile, device, *results of `upstream`) that saves results in `draft`.
        settings: {dotted name: group or single value} of the settings that affect the result, those of its training
            first.
        data: {name: layout.Split, layout.Tiles, or path of a file or folder} of what it reads.
        upstream: names of the steps whose results it needs.
        version: raised by hand when the result of `run` changes, even if only by rounding.
        parallel: whether several processes may share each of its batches.
        trains: whether it trains or uses a network, so that seed, model_scale and image size affect the result.
        requirements: function that returns sentences about what keeps it from running.
        network: the network that it trains and stores: backbone or a key of SEGMENTERS; "" for none.
    """

    name: str
    problem: int
    run: Callable
    settings: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    upstream: tuple[str, ...] = ()
    version: int = 1
    parallel: bool = False
    trains: bool = True
    requirements: Callable = tuple
    network: str = ""

    @property
    def check(self):
        """Name of the step that checks its data before it runs; a check names itself."""
        return check_of(self.problem)

    @property
    def training(self):
        """Its group of training settings; None for a step without one."""
        group = next(iter(self.settings.values()), None)
        return group if isinstance(group, Group) else None

    @property
    def images(self):
        """Number of images in an epoch; 0 for a step that reads no images."""
        return next((len(part) for part in self.data.values() if hasattr(part, "__len__")), 0)

    @property
    def processes(self):
        """Number of processes that share its batches."""
        return self.training.processes if self.parallel else 1


def check_of(problem):
    """Return the name of the step that checks the data of Problem 1 or 2."""
    return f"check-problem{problem}"


def steps(profile, data, device):
    """Yield the steps that the data allows, in dependency order.

    Args:
        profile: settings.Profile.
        data: layout.Layout.
        device: torch device that they run on.
    """
    for problem, examine in ((1, doctor.problem1), (2, doctor.problem2)):
        if data.has[problem]:
            folder = data.root / f"p{problem}_data"
            run = partial(_check, examine, folder)
            yield Step(check_of(problem), problem, run, data={folder.name: folder}, trains=False)
    if data.problem1:
        yield from _problem1(profile, data.problem1, data.root / GROUPS)
    if data.problem2:
        yield from _problem2(profile, data.problem2, data.root / GROUPS, device)


def _problem1(profile, data, groups):
    """Yield the steps of Problem 1: pre-training, settings A–E, controls, and the embedding of activations."""
    yield Step(
        "pretrain", 1, pretrain.self_supervised, {"pretrain": profile.pretrain}, {"pool": data.pool},
        version=8, parallel=True, network="backbone",
    )  # fmt: skip
    source = pretrain.supervised_source(profile, data)
    yield Step(
        "pretrain-supervised", 1, pretrain.supervised, {"supervised": profile.supervised},
        {"pool": data.pool, "backbone_file": data.supervised_backbone}, version=7, parallel=True, network="backbone",
        requirements=partial(requirements.supervised, profile, data, source),
    )  # fmt: skip

    office = {"train": data.train, "val": data.val, "groups": groups}
    tuning = {"finetune": profile.finetune}
    for row in ROWS.values():
        upstream = (row.pretraining,) if row.pretraining else ()
        if row.name == "colour":
            yield Step(row.step, 1, controls.colour, tuning, office, upstream, 4)
        elif row.name == "simple":
            yield Step(row.step, 1, controls.simple, {"data.image_size": profile.data.image_size}, office, trains=False)
        elif row.name == "knn":
            yield Step(row.step, 1, controls.knn, {"controls": profile.controls}, office, upstream, 7)
        else:
            run = partial(finetune.run, setting=row.name)
            yield Step(row.step, 1, run, tuning, office, upstream, 7, not row.frozen, network="backbone")
    upstream = (f"finetune-{profile.embed.setting}",)
    yield Step("embed", 1, _embed, {"embed": profile.embed}, {"train": data.train}, upstream, 3)


def _problem2(profile, data, groups, device):
    """Yield the steps of Problem 2: the segmentation models, the colour control, and everything mode."""
    tiles = {"tiles_train": data.train, "tiles_validation": data.validation}
    for name in SEGMENTERS:
        settings = {name: getattr(profile, name), "segmentation.stage_images": profile.segmentation.stage_images}
        yield Step(
            f"segment-{name}", 2, partial(train_segmenter.run, name=name), settings, tiles, version=6, parallel=True,
            network=name, requirements=partial(requirements.segmentation, name, profile, data),
        )  # fmt: skip
    yield Step("segment-colour", 2, lambda draft, data, *_: train_segmenter.colour(draft, data), {}, tiles, version=2)

    sam = weights.find_sam()
    sam_file = sam / "model.safetensors" if sam and sam.is_dir() else sam
    refine = generate_masks.refinement_method(profile.everything.refine, sam is not None, device)
    yield Step(
        "everything", 2, partial(_everything, sam=sam),
        {"everything": profile.everything.model_copy(update={"refine": refine})},
        {"tiles_validation": data.validation, "groups": groups, "sam_weights": sam_file},
        (f"segment-{profile.segmentation.improved}",), 5,
        requirements=partial(requirements.everything, profile, data, sam),
    )  # fmt: skip


def repeated(profile):
    """Return the names of the steps that run with each seed: most of Problem 1, and the improved segmentation model."""
    problem1 = {name for row in ROWS.values() for name in (row.pretraining, row.step) if name and row.name != "simple"}
    return problem1 | {f"segment-{profile.segmentation.improved}"}


def _check(examine, folder, draft, *_):
    report = examine(folder)
    if report.errors:
        raise UserError(
            f"{folder} has errors, so nothing is trained: {' '.join(report.errors[:MAX_ERRORS])} "
            f"To list all: .venv/bin/python -m hw1lib data check --data-root {str(folder.parent)!r}"
        )
    draft.history([])
    draft.metrics({"warnings": report.warnings, **report.facts})


def _embed(draft, data, profile, device, finetuned):
    first, last = finetuned.array("activations_first"), finetuned.array("activations_last")
    points, metrics = projection.project(first, last, data.train.labels, profile.embed.perplexity, profile.seed)
    for name, array in points.items():
        draft.array(name, array)
    draft.history([])
    draft.metrics(metrics)


def _everything(draft, data, profile, device, segmented, sam):
    generate_masks.run(draft, data, profile, segmented.array("predictions"), sam, device)
