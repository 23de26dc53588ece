"""The steps of one profile on one data root: their keys, status and results, and how a step is run."""

import contextlib
import datetime
import functools
import os
import signal
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from hw1lib import cpus, files, processes, profiles, progress, provenance
from hw1lib.data import hashes
from hw1lib.errors import Diverged, UserError, did_you_mean, out_of_memory, visible
from hw1lib.loops import device, distributed
from hw1lib.settings import Group, flatten, result_settings
from hw1lib.steps import explain, requirements, store


class Steps:
    """The steps of one profile on one data root.

    Args:
        build: function(profile, data, device) that returns the steps in order, such as graph.steps.
        profile: settings.Profile.
        data: layout.Layout.
        results: store.Store.
        device: torch device that steps run on.
        watch: function(step's name, history) to call after each epoch of training, or None.
    """

    def __init__(self, build, profile, data, results, device, watch=None):
        self.build = build
        self.profile = profile
        self.data = data
        self.store = results
        self.device = device
        self.watch = watch
        self.suffix = ""  # of labels
        self._keys = {}
        self._fingerprints = {}
        self._checked = set()  # names of steps whose requirements are met

    def with_seed(self, seed, watch=None):
        """Return the same steps with another seed; the data is not hashed again."""
        profile = self.profile.model_copy(update={"seed": seed})
        other = Steps(self.build, profile, self.data, self.store, self.device, watch)
        other._fingerprints = self._fingerprints
        other.suffix = f", seed {seed}"
        return other

    @functools.cached_property
    def all(self):
        """The steps that the data allows, by name, in dependency order."""
        return {step.name: step for step in self.build(self.profile, self.data, self.device)}

    def label(self, name):
        """Return the name of a step in progress lines and plans: with its seed, if that is not the report's own."""
        return name + self.suffix

    def step(self, name):
        """Return a step by name.

        Raises:
            UserError: there is no such step, or the data lacks its problem.
        """
        if name not in self.all:
            choices = f"{', '.join(self.all)}.{did_you_mean(name, self.all)}"
            raise UserError(f"There is no step {name!r} for {self.data.root}. Choose one of {choices}")
        return self.all[name]

    # --- keys

    def config(self, name):
        """Return everything that the result of a step depends on, as plain data."""
        step, profile = self.step(name), self.profile
        shared = {}
        if step.trains:
            on_gpu = self.device.type != "cpu"  # tf32 and cudnn_benchmark have no effect on CPUs
            shared |= {"seed": profile.seed, "model_scale": profile.model_scale}
            shared |= {"tf32": profile.tf32 and on_gpu, "cudnn_benchmark": profile.cudnn_benchmark and on_gpu}
        if step.trains and step.problem == 1:
            shared |= {"image_size": profile.data.image_size, "overhead": profile.data.overhead}
            shared |= {"zero_init_residual": profile.zero_init_residual}
        return {
            "step": name,
            "version": step.version,
            "settings": {"profile": shared} | {name: self._resolve(value) for name, value in step.settings.items()},
            "data": {part: self._fingerprint(step, part) for part in step.data},
            "upstream": {other: self.key(other) for other in step.upstream},
        }

    def _resolve(self, value):
        """Return a setting, or a group of settings as a dict with the precision that "auto" means on this device."""
        if not isinstance(value, Group):
            return value
        values = result_settings(value)
        if "precision" in values:
            dtype = device.dtype(value.precision, self.device) or torch.float32
            values["precision"] = str(dtype).removeprefix("torch.")
        return values

    def key(self, name):
        """Return the key of a step: a hash of `config`, and the name of the folder of its result."""
        if name not in self._keys:
            self._keys[name] = store.key_of(self.config(name))
        return self._keys[name]

    def _fingerprint(self, step, part):
        """Return the hash that this part of a step's data had when it was first needed."""
        if part not in self._fingerprints:
            self._fingerprints[part] = self._hash(step, part)
        return self._fingerprints[part]

    def _hash(self, step, part):
        """Return the hash of a part of a step's data as it is now; unchanged files are not read again."""
        source, cache = step.data[part], self.data.decoded
        if not isinstance(source, Path | None):
            return hashes.fingerprint(source)
        if source is None or not source.is_dir():
            return hashes.file_fingerprint(source, cache) if source and source.is_file() else None
        content = hashes.folder_fingerprint(source, cache)
        notes = self.data.group_notes(step.problem)  # what the check reports of groups.csv
        return store.key_of([content, notes]) if notes else content

    # --- status

    def status(self, name):
        """Return "done", "to resume" or "to run"."""
        return self.store.status(name, self.key(name))

    def why(self, name):
        """Return why a step is not done, as a phrase; empty if it is."""
        key, status = self.key(name), self.status(name)
        if status == "done":
            return ""
        if status == "to resume":
            return "it was interrupted and has a checkpoint"
        damage = "; ".join(self.store.damage(name, key))
        return damage or explain.reason(self.config(name), self.store.configs(name))

    def expected(self, name):
        """Return the seconds that a step took, or an estimate from results under other keys; None if unknown."""
        epochs = getattr(self.step(name).training, "epochs", None)
        seconds = {}
        for result in self.store.results(name):
            with contextlib.suppress(OSError, ValueError, KeyError, UserError):  # a damaged result
                run, trained = result.run, len(result.history)
                if not run["resumed"]:  # otherwise the seconds are those of the last attempt alone
                    seconds[result.key] = run["seconds"] * (epochs / trained if epochs and trained else 1)
        return seconds.get(self.key(name)) or (statistics.median(seconds.values()) if seconds else None)

    # --- running

    def result(self, name):
        """Return the result of a step; run the step, and those that it builds on, if they are not done.

        Raises:
            UserError: a requirement is not met, the data has errors, training diverges, or memory or disk space runs
                out.
        """
        step, key = self.step(name), self.key(name)
        if distributed.broadcast(distributed.rank() == 0 and self.store.done(name, key)):
            return self.store.result(name, key)

        if name not in self._checked:
            requirements.refuse([(self, each) for each in self.needed(name)])
            self._checked |= set(self.needed(name))
        if step.check != name:
            self.result(step.check)
        upstream = [self.result(other) for other in step.upstream]
        if step.processes > 1 and distributed.world_size() == 1:
            self._start_torchrun(step)
        elif step.parallel:
            self._claim(step, upstream)
        else:
            with distributed.rank0_first():
                if not distributed.rank():
                    with distributed.single_process():
                        self._claim(step, upstream)
        return self.store.result(name, key)

    def needed(self, name):
        """Return the names of a step's check, the steps that it builds on, and itself, in dependency order."""
        step = self.step(name)
        before = [other for upstream in step.upstream for other in self.needed(upstream)]
        return list(dict.fromkeys([step.check, *before, name]))

    def command(self, name):
        """Return the arguments of `python` that run one step on its own, under the same key; a list of str."""
        base = self.profile.name if self.profile.name in profiles.NAMES else "demo"
        words = ["-m", "hw1lib", "run", name, "--profile", base, "--data-root", str(self.data.root)]
        words += ["--out", str(self.store.out), "--device", str(self.device)]
        defaults, settings = flatten(profiles.get(base)), flatten(self.profile)
        changed = {dotted: value for dotted, value in settings.items() if value != defaults[dotted]}
        for group in (dotted.removesuffix(".precision") for dotted in settings if dotted.endswith(".precision")):
            # "auto" may mean another precision on another processor.
            changed[f"{group}.precision"] = self._resolve(getattr(self.profile, group))["precision"]
        changed = {n: ",".join(v) if isinstance(v, tuple) else v for n, v in changed.items()}
        return [*words, "--set", *(f"{n}={v}" for n, v in changed.items() if n not in ("device", "only"))]

    def _start_torchrun(self, step):
        """Run a step on several processes of this machine, and report their progress as that of this process."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={step.processes}"]
        words = [sys.executable, *torchrun, *self.command(step.name)]
        threads = {"OMP_NUM_THREADS": str(cpus.share(step.processes))}  # torchrun's own default is 1

        def report(record):
            progress.emit(progress.relabel(record, self.label(step.name)))

        with progress.follow(report) as (variables, errors):
            code, output = processes.run(words, threads | os.environ | variables, signal.SIGTERM, tail=5)
        if code:
            raise UserError(f"{step.name}, on {step.processes} processes: {errors[0] if errors else output}")

    def _claim(self, step, upstream):
        with self.store.claim(step.name, self.key(step.name), self.config(step.name)) as draft:
            if draft is not None:
                self._run(step, draft, upstream)

    def _run(self, step, draft, upstream):
        started, draft.label = time.time(), self.label(step.name)
        if self.watch is not None:
            draft.watch = partial(self.watch, step.name)
        with self._advice(step, draft):
            step.run(draft, getattr(self.data, f"problem{step.problem}"), self.profile, self.device, *upstream)

        # The key describes the data as it was before.
        changed = [part for part in step.data if self._hash(step, part) != self._fingerprint(step, part)]
        if changed:
            draft.checkpoint.unlink(missing_ok=True)
            raise UserError(
                f"{step.name}: the data changed while it ran ({', '.join(changed)}), so its result is discarded. "
                "Run it again; in a notebook, restart the kernel first."
            )
        run = {
            "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(),
            "seconds": round(time.time() - started, 3),
            "processes": distributed.world_size(),
            **provenance.process(self.device),
            "precision": self._precision(step),
            "resumed": draft.resumed,
        }
        if not distributed.rank():
            files.write_json(draft.folder / "run.json", run)

    def _precision(self, step):
        """Return the precision that a step trains in; None if it trains nothing."""
        precision = self._resolve(step.training).get("precision") if step.training else None
        tf32 = precision == "float32" and self.profile.tf32 and self.device.type != "cpu"
        return "float32, products in TF32" if tf32 else precision

    @contextlib.contextmanager
    def _advice(self, step, draft):
        """Turn divergence and lack of memory into a UserError that names the setting to change."""
        try:
            yield
        except Diverged as error:
            advice = ""
            if error.files:
                progress.say(draft.label, visible(f"the images of this batch are {', '.join(error.files)}"))
                advice = "Look for a damaged image among those of the batch, listed above, or "
            raise UserError(
                f"{step.name}: {error}. {advice or 'Please '}lower the learning rate (now {error.rate:g}), "
                f"for example --set {next(iter(step.settings))}.lr={error.rate / 10:g}."
            ) from error
        except (MemoryError, RuntimeError, OSError) as error:  # torch raises RuntimeErrors
            if not out_of_memory(error):
                raise
            advice = f"{self.for_less_memory(step.name)} What was finished before is kept."
            raise UserError(f"{step.name}: memory ran out on {self.device}. {advice}") from error

    def for_less_memory(self, name):
        """Return advice, one sentence, on how to reduce the memory that a step needs."""
        step = self.step(name)
        if not step.trains:
            return "Close other programs."
        for group, settings in step.settings.items():
            for setting in ("batch_size", "points_per_batch"):
                if (now := getattr(settings, setting, 0)) > 2:
                    return f"Lower {group}.{setting}, for example --set {group}.{setting}={now // 2}."
        limit = "data.office_limit=1000" if step.problem == 1 else "data.tile_limit=200"
        return f"Close other programs, or use less of the data: --set {limit}."
