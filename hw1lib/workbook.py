"""What a notebook imports: a profile and its data, the results of its steps, and `keep` for the report."""

import functools
import os
import re
import warnings
from pathlib import Path

import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from hw1lib import cpus, files, kept, paths, profiles, progress
from hw1lib.chapters import style, tables
from hw1lib.data import earth, layout
from hw1lib.errors import UserError
from hw1lib.loops import device, distributed
from hw1lib.steps import graph, requirements
from hw1lib.steps.run import Steps
from hw1lib.steps.store import Store


class Workbook:
    """One profile on one data root, with its build folder.

    Args:
        profile: smoke, demo, seed or strong, or the path of a TOML file.
        data_root: folder with p1_data/ and p2_data/; empty for the Earth sample.
        out: build folder; empty for report/build/<profile>/, where <profile> is a file's name without .toml.
        settings: dict of dotted settings that replace the profile's.

    Raises:
        UserError: the profile, a setting or the data is invalid.
    """

    def __init__(self, profile="demo", data_root="", out="", settings=None):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # our own messages name the file
        self.profile = profiles.get(profile, settings)
        if self.profile.needs_data and not data_root:
            raise UserError(
                f"Profile {profile} is for the real course data. Say where it is: make report PROFILE={profile} "
                "DATA=/path/to/hw1_data, or --data-root. data/README.md shows its layout."
            )
        self.root = Path(data_root).expanduser().resolve() if data_root else earth.build()
        self.is_sample = self.root.resolve() == paths.EARTH.resolve()
        self.out = Path(out).expanduser().resolve() if out else paths.BUILD / self.profile.name
        self.data = layout.find(self.root, self.profile.data, self.profile.only, self.out / "decoded")
        self.profile, self.warnings = requirements.fit(self.profile, self.data, settings or ())
        self.device = distributed.local_device(device.choose(self.profile.device))
        threads = self.profile.threads or min(torch.get_num_threads(), cpus.available())
        if threads != torch.get_num_threads():  # the call changes MKL's rounding even if the number does not change
            torch.set_num_threads(threads)
        device.set_up(self.device, self.profile.tf32, self.profile.cudnn_benchmark)
        self.steps = Steps(graph.steps, self.profile, self.data, Store(self.out), self.device, _live_figure())
        self.notebook = kept.notebook()
        self._used = {}  # {label: key} of the steps whose results this process has used
        style.use()

    @property
    def has(self):
        """Whether the data holds each problem: dict from 1 and 2 to bool."""
        return self.data.has

    @functools.cached_property
    def seeds(self):
        """The steps of each seed: dict from seed to Steps, the report's own first."""
        first = self.profile.seed
        others = range(first + 1, first + self.profile.seeds)
        return {first: self.steps} | {seed: self.steps.with_seed(seed, _live_figure()) for seed in others}

    def planned(self):
        """Yield (label, Steps, name) of each step that this profile runs, in order."""
        for steps in self.seeds.values():
            for name in steps.all:
                if steps is self.steps or name in graph.repeated(self.profile):
                    yield steps.label(name), steps, name

    def result(self, name, seed=None):
        """Return the result of a step, such as "pretrain": train, resume or load it.

        Args:
            name: name of the step; `book.steps.all` lists them.
            seed: one of `book.seeds`, by default the profile's own; ignored by steps that run with one seed only.

        Returns:
            store.Result: `.metrics` (dict), `.history` (DataFrame), `.array(name)`, `.weights()`.
        """
        repeated = seed is not None and name in graph.repeated(self.profile)
        steps = self.seeds[seed] if repeated else self.steps
        done, label = steps.status(name) == "done", steps.label(name)
        result = steps.result(name)
        if get_ipython() is not None and done and label not in self._used and "loss" in result.history:
            progress.epoch(label, result.history.to_dict("records")[-1], len(result.history))
        self._used[label] = result.key
        return result

    def keep(self, name, content, caption="", shown=None):
        """Show a figure, a table or a text, and keep it for the report.

        Args:
            name: name in the report's template.
            content: a matplotlib Figure (kept as PNG and PDF), a DataFrame (CSV) or Markdown text.
            caption: caption of a figure.
            shown: a DataFrame that the report shows in place of `content`, such as one with rounded intervals.

        Raises:
            UserError: the name contains other characters than a–z, 0–9, - and _, or `content` has another type.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise UserError(f"keep({name!r}): a name may contain only lower-case letters, digits, - and _.")
        text = None
        if isinstance(content, Figure):
            kind = "figure"
            for suffix in ("pdf", "png"):
                style.save(content, self.out / "figures" / f"{name}.{suffix}")
        elif isinstance(content, pd.DataFrame):
            kind, text = "table", tables.markdown(content if shown is None else shown)
            files.write_text(self.out / "tables" / f"{name}.csv", content.to_csv(index=False, float_format="%.6f"))
        elif isinstance(content, str):
            kind, text = "text", content
        else:
            raise UserError(
                f"keep({name!r}): content must be a Figure, a DataFrame or a str, not a {type(content).__name__}."
            )
        if text is not None:
            files.write_text(self.out / "text" / f"{name}.md", text + "\n")
        stale = kept.record(self.out, name, kind, caption, self._used, self.notebook)
        if get_ipython() is not None:
            display(content if text is None else Markdown(text))
        if stale:
            print(f"The report's own {name} differs: the next `make report` runs {stale} again and replaces this one.")


def is_live():
    """Return whether an interactive front end is attached to this kernel, so that widgets work."""
    front_ends = {"JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"}
    return get_ipython() is not None and bool(front_ends & set(os.environ)) and not kept.notebook()


def browse(draw, **choices):
    """Display what a function draws, with a slider per argument in a live notebook, else for their first values.

    Args:
        draw: function that returns a Figure, or anything else that notebooks display.
        choices: the values of each of its arguments, such as `number=["0001", "0002"]`.
    """
    if not is_live():
        display(draw(**{name: next(iter(values)) for name, values in choices.items()}))
        return
    import ipywidgets

    slider = functools.partial(ipywidgets.SelectionSlider, continuous_update=False)
    controls = {name: slider(options=list(values)) for name, values in choices.items()}
    ipywidgets.interact(lambda **chosen: display(draw(**chosen)), **controls)


def _live_figure():
    """Return a function(step, history) that draws a step's progress into one figure; None outside live notebooks."""
    if not is_live():
        return None
    handles = {}

    def watch(step, history):
        picture = Image(style.png(style.progress(step, history)))
        if step in handles:
            handles[step].update(picture)
        else:
            handles[step] = display(picture, display_id=True)

    return watch
