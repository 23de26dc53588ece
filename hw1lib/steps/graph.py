"""The steps, and what each reads: what depends on what.

A step's key is a hash of exactly its settings, its data, the keys of the steps it builds on, and
a version number that is raised by hand when its code changes what it computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hw1lib.data.check import findings
from hw1lib.errors import UserError
from hw1lib.loops import controls, finetune, generate_masks, pretrain, train_segmenter
from hw1lib.metrics import projection
from hw1lib.models import weights
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.variants import ROWS

ERRORS = 5  # of the data that are named where it is refused


@dataclass(frozen=True)
class Step:
    """One unit of work whose result is kept.

    Attributes:
        name: such as pretrain or finetune-C.
        problem: 1 or 2.
        reads: the settings that it depends on, whole groups or single ones.
        data: the splits that it depends on, such as pool.
        upstream: the steps whose results it needs.
        run: function(draft, the problem's data, profile, device, *results of `upstream`); writes the results.
        version: raised by hand when `run` computes something else, be it in rounding.
        parallel: whether several processes may work on it together, each with a part of every batch.
        trains: whether a network is trained or used, so that seed, model_scale and image size count.
    """

    name: str
    problem: int
    reads: tuple[str, ...]
    data: tuple[str, ...]
    upstream: tuple[str, ...]
    run: Callable
    version: int = 1
    trains: bool = True
    parallel: bool = False


def steps(profile, root):
    """What depends on what: name, problem, settings, data, upstream, function, version."""
    office, tiles = ("train", "val", "groups"), ("tiles_train", "tiles_validation")
    yield Step(check_of(1), 1, (), ("p1_data",), (), partial(_check, findings.problem1, root / "p1_data"), trains=False)
    yield Step(check_of(2), 2, (), ("p2_data",), (), partial(_check, findings.problem2, root / "p2_data"), trains=False)

    yield Step("pretrain", 1, ("pretrain",), ("pool",), (), pretrain.self_supervised, 8, parallel=True)
    images = ("pool", "backbone_file")
    yield Step("pretrain-supervised", 1, ("supervised",), images, (), pretrain.supervised, 7, parallel=True)
    for row in ROWS.values():
        upstream = (row.pretraining,) if row.pretraining else ()
        if row.name == "colour":
            yield Step(row.step, 1, ("finetune",), office, upstream, controls.colour, 4)
        elif row.name == "simple":
            yield Step(row.step, 1, ("data.image_size",), office, upstream, controls.simple, trains=False)
        elif row.name == "knn":
            yield Step(row.step, 1, ("controls",), office, upstream, controls.knn, 7)
        else:
            work = partial(finetune.run, setting=row.name)
            yield Step(row.step, 1, ("finetune",), office, upstream, work, 7, parallel=not row.frozen)
    yield Step("embed", 1, ("embed",), ("train",), (f"finetune-{profile.embed.setting}",), _embed, 3)

    for name in SEGMENTERS:
        reads = (name, "segmentation.stage_images")
        yield Step(f"segment-{name}", 2, reads, tiles, (), partial(train_segmenter.run, name=name), 6, parallel=True)
    yield Step("segment-colour", 2, (), tiles, (), lambda draft, data, *_: train_segmenter.colour(draft, data), 2)
    upstream = (f"segment-{profile.segmentation.improved}",)
    yield Step(
        "everything", 2, ("everything",), ("tiles_validation", "groups", "sam_weights"), upstream, _everything, 5
    )


def repeated(profile):
    """The steps that run with each seed: pre-training, fine-tuning, controls that draw, and the improved model."""
    ours = {name for row in ROWS.values() for name in (row.pretraining, row.step) if name and row.name != "simple"}
    return ours | {f"segment-{profile.segmentation.improved}"}


def check_of(problem):
    """The step that looks through a problem's data; no other one runs before it."""
    return f"check-problem{problem}"


def _check(examine, folder, draft, *_):
    found = examine(folder)
    if found.errors:
        raise UserError(
            f"{folder} cannot be used as it is, so nothing is trained: {' '.join(found.errors[:ERRORS])} "
            f"All findings: .venv/bin/python -m hw1lib data check --data-root {str(folder.parent)!r}"
        )
    draft.history([])
    draft.metrics({"warnings": found.warnings, **found.facts})


def _embed(draft, data, profile, device, tuned):
    first, last = tuned.array("activations_first"), tuned.array("activations_last")
    plane, numbers = projection.project(first, last, data.train.labels, profile.embed.perplexity, profile.seed)
    for name, points in plane.items():
        draft.array(name, points)
    draft.history([])
    draft.metrics(numbers)


def _everything(draft, data, profile, device, segmented):
    generate_masks.run(draft, data, profile, segmented.array("predictions"), weights.find_sam(), device)
