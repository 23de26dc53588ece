"""The steps of one profile on one data root: keys, states and results, and how a step is run."""

import contextlib
import datetime
import functools
import itertools
import operator
import os
import signal
import statistics
import sys
import time
from functools import partial

import torch

from hw1lib import cpus, files, processes, profiles, progress, provenance
from hw1lib.data import groups, hashes
from hw1lib.errors import Diverged, UserError, did_you_mean, out_of_memory
from hw1lib.loops import device, distributed, generate_masks
from hw1lib.models import weights
from hw1lib.settings import Group, flatten, result_settings
from hw1lib.steps import explain, graph, requirements, store
from hw1lib.steps.graph import check_of

NOT_FINITE = "not_finite.json"  # beside the checkpoint: which images gave a loss that is not finite
SHARED = ("seed", "model_scale", "tf32", "cudnn_benchmark")  # settings that count for all steps that train


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
        self.suffix = ""  # of labels: the seed, where it is another than the report's own
        self._keys = {}
        self._fingerprints = {}
        self._checked = set()  # names of steps whose requirements are met

    def of_seed(self, seed, watch=None):
        """The same steps with another seed; the data is not hashed again."""
        profile = self.profile.model_copy(update={"seed": seed})
        other = Steps(profile, self.data, self.store, self.device, watch)
        other._fingerprints = self._fingerprints
        other.suffix = f", seed {seed}"
        return other

    @functools.cached_property
    def all(self):
        """The steps that this data allows, by name, each after those that it builds on."""
        return {step.name: step for step in graph.steps(self.profile, self.data.root) if self.data.has[step.problem]}

    def label(self, name):
        """How lines of progress and plans call a step."""
        return name + self.suffix

    def step(self, name):
        """A step by name.

        Raises:
            UserError: there is no such step, or this data has no such problem.
        """
        if name not in self.all:
            similar = did_you_mean(name, self.all)
            raise UserError(
                f"There is no step {name!r} for {self.data.root}; there are: {', '.join(self.all)}.{similar}"
            )
        return self.all[name]

    def config(self, name):
        """Everything that a step's result follows from, as plain data."""
        step, profile = self.step(name), self.profile
        shared = {name: getattr(profile, name) for name in SHARED} if step.trains else {}
        if self.device.type == "cpu":  # where neither does anything
            shared |= dict.fromkeys(shared.keys() & {"tf32", "cudnn_benchmark"}, False)
        if step.trains and step.problem == 1:
            shared |= {"image_size": profile.data.image_size, "overhead": profile.data.overhead}
            shared["zero_init_residual"] = profile.zero_init_residual
        return {
            "step": name,
            "version": step.version,
            "settings": {"profile": shared, **{name: self._setting(name) for name in step.reads}},
            "data": {split: self._fingerprint(split) for split in step.data},
            "upstream": {other: self.key(other) for other in step.upstream},
        }

    def _setting(self, dotted):
        """One setting, or a group of them as a dict; what depends on the device is what it is on this one."""
        value = operator.attrgetter(dotted)(self.profile)
        if not isinstance(value, Group):
            return value
        values = result_settings(value)
        if "precision" in values:
            chosen = device.dtype(value.precision, self.device) or torch.float32
            values["precision"] = str(chosen).removeprefix("torch.")
        if values.get("refine") == "auto":
            values["refine"] = generate_masks.refining("auto", weights.find_sam() is not None, self.device)
        return values

    def key(self, name):
        """The name of its result's folder: a hash of `config`."""
        if name not in self._keys:
            self._keys[name] = store.key_of(self.config(name))
        return self._keys[name]

    def _fingerprint(self, split):
        if split not in self._fingerprints:
            self._fingerprints[split] = self._hashed(split)
        return self._fingerprints[split]

    def _hashed(self, split):
        """Hash some data as it is now; files that did not change are not read again."""
        if split in ("p1_data", "p2_data"):
            content = hashes.folder_fingerprint(self.data.root / split, self.data.decoded)
            notes = self.data.group_notes(int(split[1]))
            return store.key_of([content, notes]) if notes else content  # what the check says of groups.csv
        if split in ("groups", "backbone_file", "sam_weights"):
            if split == "groups":
                file = self.data.root / groups.GROUPS
            else:
                file = self.data.problem1.supervised_backbone if split == "backbone_file" else weights.find_sam()
            file = file / "model.safetensors" if file and file.is_dir() else file
            return hashes.file_fingerprint(file, self.data.decoded) if file and file.is_file() else None
        problem = self.data.problem2 if split.startswith("tiles_") else self.data.problem1
        return hashes.fingerprint(getattr(problem, split.removeprefix("tiles_")))

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
        return damage or explain.reason(self.config(name), self.store.configs(name))

    def expected(self, name):
        """Seconds that a step took, or will take by its earlier results with other settings; None without any."""
        reads = self.step(name).reads
        epochs = getattr(getattr(self.profile, reads[0], None), "epochs", None) if reads else None
        seconds = {}
        for result in self.store.results(name):
            with contextlib.suppress(OSError, ValueError, KeyError, UserError):  # a damaged one tells nothing
                run, trained = result.run, len(result.history)
                if not run["resumed"]:  # else they are those of the last call alone
                    seconds[result.key] = run["seconds"] * (epochs / trained if epochs and trained else 1)
        return seconds.get(self.key(name)) or (statistics.median(seconds.values()) if seconds else None)

    def result(self, name):
        """The result of a step, which is run first if need be; so are the steps it builds on.

        Raises:
            UserError: the data has errors, the training fails, memory or disk space runs out.
        """
        step, key = self.step(name), self.key(name)
        if distributed.broadcast(distributed.rank() == 0 and self.store.done(name, key)):
            return self.store.result(name, key)

        if name not in self._checked:
            requirements.refuse([(self, each) for each in self.needed(name)])
            self._checked |= set(self.needed(name))
        if (check := check_of(step.problem)) != name:
            self.result(check)
        upstream = [self.result(other) for other in step.upstream]
        count = getattr(self.profile, step.reads[0]).processes if step.parallel else 1
        if count > 1 and distributed.world_size() == 1:
            self._start_torchrun(name, count)
        elif step.parallel:
            self._claim(step, key, upstream)
        else:
            with distributed.rank0_first(), distributed.single_process():
                if not distributed.rank():
                    self._claim(step, key, upstream)
        return self.store.result(name, key)

    def needed(self, name):
        """The steps that a step builds on, the check of its data first, and itself: a list of names in order."""
        step = self.step(name)
        before = [other for upstream in step.upstream for other in self.needed(upstream)]
        return list(dict.fromkeys([check_of(step.problem), *before, name]))

    def command(self, name):
        """The arguments of `python` that run one step by itself, under the key that it has here: a list of words."""
        base = self.profile.name if self.profile.name in profiles.NAMES else "demo"
        words = ["-m", "hw1lib", "run", name, "--profile", base, "--data-root", str(self.data.root)]
        words += ["--out", str(self.store.out), "--device", str(self.device)]
        usual = flatten(profiles.get(base))
        changed = {name: value for name, value in flatten(self.profile).items() if value != usual[name]}
        changed = {name: value for name, value in changed.items() if name not in ("device", "only")}
        for group in (dotted.removesuffix(".precision") for dotted in usual if dotted.endswith(".precision")):
            changed[f"{group}.precision"] = self._setting(group)["precision"]  # another processor may choose another
        values = (",".join(value) if isinstance(value, tuple) else value for value in changed.values())
        return [*words, "--set", *map("{}={}".format, changed, values)]

    def _start_torchrun(self, name, count):
        """Run a step on several processes of this machine, and report their progress as this process's own."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        words = [sys.executable, *torchrun, *self.command(name)]
        threads = {"OMP_NUM_THREADS": str(cpus.share(count))}  # torchrun's own default is 1

        def report(record):
            progress.emit(progress.relabel(record, self.label(name)))

        ending = signal.SIGTERM  # at which torchrun ends its processes
        with progress.Follower(report) as records:
            code, output = processes.run(words, threads | os.environ | records.environment, ending, tail=5)
        if code:
            raise UserError(f"{name}, on {count} processes: {records.error or output}")

    def _claim(self, step, key, upstream):
        with self.store.claimed(step.name, key, self.config(step.name)) as draft:
            if draft is not None:
                self._run(step, draft, upstream)

    def _run(self, step, draft, upstream):
        started, draft.label = time.time(), self.label(step.name)
        if self.watch is not None:
            draft.watch = partial(self.watch, step.name)
        with self._naming_what_helps(step.name, draft):
            step.run(draft, getattr(self.data, f"problem{step.problem}"), self.profile, self.device, *upstream)

        # A result must not be kept under the key of data that it may not have seen.
        changed = [split for split in step.data if self._hashed(split) != self._fingerprint(split)]
        if changed:
            draft.checkpoint.unlink(missing_ok=True)
            raise UserError(
                f"{step.name}: the data changed while it ran ({', '.join(changed)}), so its result is not kept. "
                "Run the same command again, in a new kernel."
            )
        run = {**self._provenance(started), "precision": self._precision(step), "resumed": draft.resumed}
        if not distributed.rank():
            files.write_json(draft.folder / "run.json", run)

    def _precision(self, step):
        """What its networks ran in; None where none is trained."""
        values = self._setting(step.reads[0]) if step.reads else None
        chosen = values.get("precision") if isinstance(values, dict) else None
        rounded = chosen == "float32" and self.profile.tf32 and self.device.type != "cpu"
        return "float32, products in TF32" if rounded else chosen

    @contextlib.contextmanager
    def _naming_what_helps(self, name, draft):
        """Names the setting to change where a training diverges or memory runs out."""
        try:
            yield
        except Diverged as error:
            look, note = "", draft.folder / NOT_FINITE
            with contextlib.suppress(UserError):  # a full disk must not hide the reason
                if error.files and not distributed.rank():
                    files.write_json(note, {"problem": str(error), "files": error.files})
                    look = f"look whether one of the images that {note} names is odd, or "
            setting = f"{self.step(name).reads[0]}.lr"
            raise UserError(
                f"{name}: {error}. Please {look}lower the learning rate (now {error.rate:g}), "
                f"for example --set {setting}={error.rate / 10:g}."
            ) from error
        except (MemoryError, RuntimeError, OSError) as error:  # torch's are RuntimeErrors
            if not out_of_memory(error):
                raise
            helps = f"{self.for_less_memory(name)} What was finished before is kept."
            raise UserError(f"{name}: memory ran out on {self.device}. {helps}") from error

    def for_less_memory(self, name):
        """Which setting makes a step need less memory: a sentence."""
        step = self.step(name)
        if not step.trains:
            return "Close other programs."
        for group, setting in itertools.product(step.reads, ("batch_size", "points_per_batch")):
            now = getattr(getattr(self.profile, group, None), setting, 0)
            if now > 2:
                return f"Lower {group}.{setting}, for example --set {group}.{setting}={now // 2}."
        limit = "data.office_limit=1000" if step.problem == 1 else "data.tile_limit=200"
        return f"Close other programs, or use less of the data: --set {limit}."

    def _provenance(self, started):
        return {
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(),
            "seconds": round(time.time() - started, 3),
            "processes": distributed.world_size(),
            **provenance.process(self.device),
        }
