"""What a notebook imports: a profile on its data, the results of its steps, and `keep` for the report."""

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
from hw1lib.steps import requirements
from hw1lib.steps.graph import repeated
from hw1lib.steps.run import Steps
from hw1lib.steps.store import Store


class Workbook:
    """One profile on one data root, with its build folder.

    Args:
        profile: smoke, demo, seed or strong, or the path of a TOML file.
        data_root: folder with p1_data/ and p2_data/; empty for the Earth sample.
        out: build folder; empty for report/build/<profile>/, where a file's profile is its name without .toml.
        settings: dict of dotted settings that replace the profile's.

    Raises:
        UserError: anything that the caller can mend.
    """

    def __init__(self, profile="demo", data_root="", out="", settings=None):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters about a file is said by name
        self.profile = profiles.get(profile, settings)
        if self.profile.needs_data and not data_root:
            raise UserError(
                f"Profile {profile} is for the real course data. Say where it is: make report PROFILE={profile} "
                "DATA=/path/to/hw1_data, or --data-root. data/README.md shows its layout."
            )
        self.root = Path(data_root).expanduser().resolve() if data_root else earth.build()
        self.is_sample = self.root.resolve() == paths.EARTH.resolve()  # also where somebody gave its path
        self.out = Path(out).expanduser().resolve() if out else paths.BUILD / self.profile.name
        self.data = layout.find(self.root, self.profile.data, self.profile.only, self.out / "decoded")
        self.profile, self.warnings = requirements.fitted(self.profile, self.data, settings or ())
        self.device = distributed.local_device(device.choose(self.profile.device))
        threads = self.profile.threads or min(torch.get_num_threads(), cpus.available())
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        device.set_up(self.device, self.profile.tf32, self.profile.cudnn_benchmark)
        self.steps = Steps(self.profile, self.data, Store(self.out), self.device, _live())
        self.notebook = kept.notebook()
        self._used = {}  # label of each step that this process has looked at -> its key
        style.use()

    @property
    def has(self):
        """Which of the two problems the data holds: dict from 1, 2 to bool."""
        return self.data.has

    @functools.cached_property
    def seeds(self):
        """The steps of each seed: dict from seed to Steps, the report's own first."""
        first, count = self.profile.seed, self.profile.seeds
        others = range(first + 1, first + count)
        return {first: self.steps} | {seed: self.steps.of_seed(seed, _live()) for seed in others}

    def planned(self):
        """Everything that this profile runs: (label, Steps, name of the step), in order."""
        for steps in self.seeds.values():
            own = steps is self.steps
            for name in steps.all:
                if own or name in repeated(self.profile):
                    yield steps.label(name), steps, name

    def result(self, name, seed=None):
        """The stored result of a step, such as "pretrain"; what is not done is trained first.

        Args:
            name: of the step; `book.steps.all` lists them.
            seed: another seed than the profile's own.

        Returns:
            store.Result: `.metrics` (dict), `.history` (DataFrame), `.array(name)`, `.weights()`.
        """
        if seed == self.profile.seed or name not in repeated(self.profile):
            seed = None  # the same for all of them
        steps = self.steps if seed is None else self.seeds[seed]
        done = steps.status(name) == "done"
        found = steps.result(name)
        label = steps.label(name)
        if get_ipython() is not None and done and label not in self._used and "loss" in found.history:
            progress.epoch(label, found.history.to_dict("records")[-1], len(found.history))
        self._used[label] = found.key
        return found

    def keep(self, name, thing, caption="", shown=None):
        """Shows a figure, a table or a text, and keeps it under a name for the report.

        Args:
            name: how the report's template calls it.
            thing: a matplotlib Figure (kept as PNG and PDF), a DataFrame (CSV) or Markdown.
            caption: of a figure.
            shown: the DataFrame that a reader sees in place of `thing`, such as one with rounded intervals.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise UserError(f"keep({name!r}): a name has lower-case letters, digits, - and _.")
        if isinstance(thing, Figure):
            kind = "figure"
            for ending in ("pdf", "png"):
                style.save(thing, self.out / "figures" / f"{name}.{ending}")
        elif isinstance(thing, pd.DataFrame):
            kind, text = "table", tables.markdown(thing if shown is None else shown)
            table = thing.to_csv(index=False, float_format="%.6f")  # fractions with six digits
            files.write_text(self.out / "tables" / f"{name}.csv", table)
        elif isinstance(thing, str):
            kind, text = "text", thing
        else:
            raise UserError(f"keep({name!r}): a {type(thing).__name__} is no figure, DataFrame or text.")
        if kind != "figure":
            files.write_text(self.out / "text" / f"{name}.md", text + "\n")
        stale = kept.record(self.out, name, kind, caption, self._used, self.notebook)
        if get_ipython() is not None:
            display(thing if kind == "figure" else Markdown(text))
        if stale:
            print(
                f"The report shows another {name}: the next `make report` runs {stale} again, which replaces this one."
            )


def is_live():
    """Whether an interactive front end is attached to this kernel, so that widgets are of use."""
    front_ends = {"JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"}
    return get_ipython() is not None and bool(front_ends & set(os.environ)) and not kept.notebook()


def browse(draw, **choices):
    """Shows draw(**chosen); in a live notebook with a control for each choice, elsewhere with the first of each.

    Args:
        draw: function that returns a Figure or anything else that notebooks show.
        choices: what each argument of it may be, such as `number=["0001", "0002"]`.
    """
    if not is_live():
        display(draw(**{name: next(iter(values)) for name, values in choices.items()}))
        return
    import ipywidgets

    slider = functools.partial(ipywidgets.SelectionSlider, continuous_update=False)
    controls = {name: slider(options=list(values)) for name, values in choices.items()}
    ipywidgets.interact(lambda **chosen: display(draw(**chosen)), **controls)


def _live():
    """A figure for each training step that grows while one looks at it; None where nobody does."""
    if not is_live():
        return None
    shown = {}

    def watch(step, history):
        picture = Image(style.png(style.progress(step, history)))
        if step in shown:
            shown[step].update(picture)
        else:
            shown[step] = display(picture, display_id=True)

    return watch
