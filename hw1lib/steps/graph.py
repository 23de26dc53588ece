"""The steps: what each reads, what made it, and how it is run.

A step's key is a hash of exactly its settings, its data, the keys of the steps it builds on, and
a version number that is raised by hand when its code changes what it computes.
"""

import contextlib
import dataclasses
import datetime
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from hw1lib import files
from hw1lib.comparison import ROWS
from hw1lib.steps import store, why
from hw1lib.data import layout
from hw1lib.data.check import check
from hw1lib.errors import Diverged, UserError, out_of_memory
from hw1lib.loops import everything, finetune, pretrain, segment, training
from hw1lib.models import weights
from hw1lib.models.segmenters import SEGMENTERS
from hw1lib.measures import embedding

REPEATED = ("pretrain", "pretrain-supervised", *(row.step for row in ROWS.values()))  # with each seed
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
        run: function(draft, context); writes the results.
        version: raised by hand when `run` computes something else, be it in rounding.
        trains: whether seed, model_scale and image size count, as for all but the data's check.
    """

    name: str
    problem: int
    reads: tuple[str, ...]
    data: tuple[str, ...]
    upstream: tuple[str, ...]
    run: Callable
    version: int = 1
    trains: bool = True


def _all():
    office = ("train", "val")
    tiles = ("tiles_train", "tiles_validation")
    for problem in (1, 2):
        name, folder = check_of(problem), f"p{problem}_data"
        yield Step(name, problem, (), (folder,), (), _check(problem), trains=False)
    yield Step(
        "pretrain",
        1,
        ("pretrain",),
        ("pool",),
        (),
        lambda draft, c: pretrain.self_supervised(draft, c.data.problem1, c.profile, c.device),
        version=3,
    )
    yield Step(
        "pretrain-supervised",
        1,
        ("supervised",),
        ("pool", "backbone_file"),
        (),
        lambda draft, c: pretrain.supervised(draft, c.data.problem1, c.profile, c.device),
        version=2,
    )
    for row in ROWS.values():
        if row.name == "colour":
            continue
        knn = row.name == "knn"
        upstream = (row.pretraining,) if row.pretraining else ()
        # The last version of each came with matrix products for small convolutions.
        yield Step(
            row.step,
            1,
            ("controls",) if knn else ("finetune",),
            office,
            upstream,
            _knn if knn else _finetune(row),
            version=3 if knn else 2,
        )
    yield Step(
        "control-colour",
        1,
        ("finetune",),
        office,
        (),
        lambda draft, c: finetune.colour(draft, c.data.problem1, c.profile, c.device),
    )
    yield Step("embed", 1, ("embed",), ("train",), ("finetune-{embed.setting}",), _embed, version=2)
    for name in SEGMENTERS:
        reads = (name, "segmentation.stage_images")
        yield Step(f"segment-{name}", 2, reads, tiles, (), _segment(name), version=2)
    yield Step("segment-colour", 2, (), tiles, (), lambda draft, c: segment.colour(draft, c.data.problem2))
    yield Step(
        "everything",
        2,
        ("everything",),
        ("tiles_validation", "sam_weights"),
        ("segment-{segmentation.improved}",),
        _everything,
        version=2,
    )


def check_of(problem):
    """The step that looks through a problem's data; no other one runs before it."""
    return f"check-problem{problem}"


def _check(problem):
    examine = {1: check.problem1, 2: check.problem2}[problem]

    def run(draft, context):
        folder = context.data.root / f"p{problem}_data"
        found = examine(folder)
        if found.errors:
            raise UserError(
                f"{folder} cannot be used as it is, so nothing is trained: "
                f"{' '.join(found.errors[:ERRORS])} All findings: "
                f".venv/bin/python -m hw1lib data check --data-root {str(context.data.root)!r}"
            )
        draft.history([])
        draft.metrics({"warnings": found.warnings, **found.facts})

    return run


def _finetune(row):
    def run(draft, context):
        backbone = context.result(row.pretraining).weights() if row.pretraining else None
        finetune.run(draft, context.data.problem1, context.profile, row.name, backbone, context.device)

    return run


def _knn(draft, context):
    backbone = context.result("pretrain").weights()
    finetune.knn(draft, context.data.problem1, context.profile, backbone, context.device)


def _segment(name):
    def run(draft, context):
        segment.run(draft, context.data.problem2, context.profile, name, context.device)

    return run


def _embed(draft, context):
    settings = context.profile.embed
    source = context.result(f"finetune-{settings.setting}")
    plane, numbers = embedding.project(
        source.array("activations_first"),
        source.array("activations_last"),
        context.data.problem1.train.labels,
        settings.perplexity,
        context.profile.seed,
    )
    for name, points in plane.items():
        draft.array(name, points)
    draft.history([])
    draft.metrics(numbers)


def _everything(draft, context):
    model = context.result(f"segment-{context.profile.segmentation.improved}")
    everything.run(
        draft, context.data.problem2, context.profile, model.array("predictions"), weights.find_sam(), context.device
    )


class Steps:
    """The steps of one profile on one data root: their keys, states and results.

    Args:
        profile: settings.Profile.
        data: layout.Layout.
        results: store.Store.
        device: torch device for what has to run.
        watch: function(step's name, history), called after each epoch of training; or None.
    """

    def __init__(self, profile, data, results, device, watch=None):
        self.profile = profile
        self.data = data
        self.store = results
        self.device = device
        self.watch = watch
        self._keys = {}
        self._fingerprints = {}

    def of_seed(self, seed, watch=None):
        """The same steps with another seed; the data is not hashed again."""
        profile = dataclasses.replace(self.profile, seed=seed)
        other = Steps(profile, self.data, self.store, self.device, watch)
        other._fingerprints = self._fingerprints
        return other

    @functools.cached_property
    def all(self):
        """The steps that this data allows, by name, each after those that it builds on."""
        has = self.data.has
        return {step.name: self._filled(step) for step in _all() if has[step.problem]}

    def _filled(self, step):
        """Replaces settings in the names of upstream steps, as in finetune-{embed.setting}."""
        groups = {f.name: getattr(self.profile, f.name) for f in dataclasses.fields(self.profile)}
        names = tuple(name.format(**groups) for name in step.upstream)
        return dataclasses.replace(step, upstream=names)

    def step(self, name):
        """A step by name.

        Raises:
            UserError: there is no such step, or this data has no such problem.
        """
        if name not in self.all:
            raise UserError(f"There is no step {name!r} for {self.data.root}; there are: {', '.join(self.all)}.")
        return self.all[name]

    def config(self, name):
        """Everything that a step's result follows from, as plain data."""
        step = self.step(name)
        settings = {name: _setting(self.profile, name) for name in step.reads}
        return {
            "step": name,
            "version": step.version,
            "settings": {"profile": self._shared(step), **settings},
            "data": {split: self._fingerprint(split) for split in step.data},
            "upstream": {other: self.key(other) for other in step.upstream},
        }

    def _shared(self, step):
        """The settings that all training steps depend on."""
        if not step.trains:
            return {}
        shared = {"seed": self.profile.seed, "model_scale": self.profile.model_scale}
        if step.problem == 1:
            data = self.profile.data
            shared |= {"image_size": data.image_size, "overhead": data.overhead}
        return shared

    def key(self, name):
        if name not in self._keys:
            self._keys[name] = store.key_of(self.config(name))
        return self._keys[name]

    def _fingerprint(self, split):
        if split not in self._fingerprints:
            self._fingerprints[split] = self._hashed(split)
        return self._fingerprints[split]

    def _hashed(self, split):
        """A hash of some data as it is now; files whose size and date are known are not read."""
        one, two = self.data.problem1, self.data.problem2
        if split == "sam_weights":
            sam = weights.find_sam()
            file = sam / "model.safetensors" if sam and sam.is_dir() else sam
            return layout.digest(file).hex() if file else None
        if split == "backbone_file":
            file = one.supervised_backbone
            return layout.digest(file).hex() if file else None
        if split in ("p1_data", "p2_data"):
            return layout.folder_fingerprint(self.data.root / split)
        if split.startswith("tiles_"):
            return layout.fingerprint(getattr(two, split.removeprefix("tiles_")))
        return layout.fingerprint(getattr(one, split))

    def _refuse_changed(self, step, draft):
        """A result must not be kept under the key of data that it may not have seen."""
        changed = [split for split in step.data if self._hashed(split) != self._fingerprint(split)]
        if changed:
            draft.checkpoint.unlink(missing_ok=True)
            raise UserError(
                f"{step.name}: the data changed while it ran ({', '.join(changed)}), so its result "
                "is not kept. Run the same command again, in a new kernel."
            )

    def status(self, name):
        """done, to resume or to run."""
        return self.store.status(name, self.key(name))

    def why(self, name):
        """Why a step is not done, as a phrase; empty where it is."""
        key, status = self.key(name), self.status(name)
        if status == "done":
            return ""
        if status == "to resume":
            return "it was interrupted; its checkpoint is there"
        damage = "; ".join(self.store.damage(name, key))
        return damage or why.reason(self.config(name), self.store.configs(name))

    def expected(self, name):
        """Seconds that a step took, or will take by its earlier results with other settings; None without any."""
        done = self.store.done(name, self.key(name))
        found = [self.store.result(name, self.key(name))] if done else self.store.results(name)
        runs = [(r.run["seconds"], r.epochs) for r in found if not r.run.get("resumed")]  # else the last call's only
        if not runs or done:
            return runs[0][0] if runs else None
        group = self.step(name).reads[0] if self.step(name).reads else ""
        epochs = getattr(getattr(self.profile, group, None), "epochs", None)
        return statistics.median(s * epochs / n if epochs and n else s for s, n in runs)

    def result(self, name):
        """The result of a step, which is run first if need be; so are the steps it builds on.

        Raises:
            UserError: the data has errors, the training fails, memory or disk space runs out.
        """
        step, key = self.step(name), self.key(name)
        if self.store.done(name, key):
            return self.store.result(name, key)
        for other in (check_of(step.problem), *step.upstream) if step.trains else ():
            self.result(other)
        with self.store.claimed(name, key, self.config(name)) as draft:
            if draft is not None:
                started = time.time()
                if self.watch is not None:
                    draft.watch = functools.partial(self.watch, name)
                with self._naming_what_helps(name):
                    step.run(draft, self)
                self._refuse_changed(step, draft)
                run = {**self._provenance(started), "resumed": draft.resumed}
                files.write_json(draft.folder / "run.json", run)
        return self.store.result(name, key)

    @contextlib.contextmanager
    def _naming_what_helps(self, name):
        """Names the setting to change where a training diverges or memory runs out."""
        try:
            yield
        except Diverged as error:
            rate = f"--set {self.step(name).reads[0]}.lr={error.rate / 10:g}"
            raise UserError(f"{name}: {error} For example {rate}.") from error
        except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
            if not out_of_memory(error):
                raise
            raise UserError(
                f"{name}: memory ran out on {self.device}. {self.for_less_memory(name)} What was "
                "finished before is kept."
            ) from error

    def for_less_memory(self, name):
        """Which setting makes a step need less memory: a sentence."""
        if not self.step(name).trains:
            return "Close other programs."
        for group in self.step(name).reads:
            for setting in (f"{group}.batch_size", f"{group}.points_per_batch"):
                with contextlib.suppress(AttributeError):
                    now = _setting(self.profile, setting)
                    if now > 2:
                        return f"Lower {setting}, for example --set {setting}={now // 2}."
        limit = "data.office_limit=1000" if self.step(name).problem == 1 else "data.tile_limit=200"
        return f"Close other programs, or use less of the data: --set {limit}."

    def _provenance(self, started):
        packages = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "numpy")
        return {
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(),
            "seconds": round(time.time() - started, 3),
            "device": str(self.device),
            "bfloat16": training.autocast_dtype("auto", self.device) is not None,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
        }


def _setting(profile, dotted):
    value = functools.reduce(getattr, dotted.split("."), profile)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
