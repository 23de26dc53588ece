"""What a notebook imports: one object that runs or loads steps and shows their results."""

import functools
import os
from pathlib import Path

from IPython import get_ipython
from IPython.display import Image, Markdown, display

from hw1lib import answers, gallery, paths, profiles, prose
from hw1lib.data import layout, sample
from hw1lib.errors import UserError
from hw1lib.loops import training
from hw1lib.results import figures, tables
from hw1lib.steps import Steps
from hw1lib.store import Store

ONLY = "HW1_ONLY"  # environment variable: 1 or 2, the problem that is looked at alone


class Workbook:
    """One profile on one data root, with its build folder.

    Args:
        profile: smoke, demo, seed or strong.
        data_root: folder with p1_data/ and p2_data/; empty for the Earth sample.
        out: build folder; empty for report/build/<profile>/.
        settings: dict of dotted settings that replace the profile's.

    Raises:
        UserError: anything that the caller can mend.
    """

    def __init__(self, profile="smoke", data_root="", out="", settings=None):
        self.profile = profiles.get(profile, settings)
        self.is_sample = not data_root
        if self.profile.needs_data and self.is_sample:
            raise UserError(
                f"Profile {profile} is for the real course data. Say where it is: "
                f"make report PROFILE={profile} DATA=/path/to/hw1_data, or --data-root. "
                "data/README.md shows its layout."
            )
        self.root = Path(data_root).expanduser().resolve() if data_root else sample.build()
        self.out = Path(out).expanduser().resolve() if out else paths.BUILD / profile
        self.data = layout.find(self.root, self.profile.data, os.environ.get(ONLY, ""))
        self.device = training.choose_device(self.profile.device)
        self.steps = Steps(self.profile, self.data, Store(self.out), self.device, _live())

    @functools.cached_property
    def seeds(self):
        """The steps of each seed: dict from seed to Steps, the report's own first."""
        first, count = self.profile.seed, self.profile.seeds if self.has[1] else 1
        others = range(first + 1, first + count)
        return {first: self.steps} | {
            seed: self.steps.of_seed(seed, _live()) for seed in others
        }

    def planned(self):
        """Everything that this profile runs: (label, Steps, name of the step), in order."""
        first, *others = self.seeds
        yield from ((name, self.steps, name) for name in self.steps.all)
        for seed in others:
            names = [n for n in self.steps.all if n in answers.REPEATED]
            yield from ((f"{name}, seed {seed}", self.seeds[seed], name) for name in names)

    def repeat(self):
        """Runs or loads pre-training, fine-tuning and controls with the other seeds."""
        first, *others = self.seeds
        for seed in others:
            for name in answers.REPEATED:
                self.seeds[seed].done(name)
        print(f"Seeds: {', '.join(map(str, self.seeds))}")

    @property
    def has(self):
        """Which of the two problems the data holds: dict from 1, 2 to bool."""
        return self.data.has

    def check(self):
        """Looks through the data, unless that is done; shows what weakens the numbers."""
        return self.say(*(f"weaknesses{problem}" for problem in (1, 2) if self.has[problem]))

    def run(self, *names):
        """Runs steps, or loads those that are done; prints their progress either way."""
        for name in names:
            done = self.steps.status(name) == "done"
            result = self.steps.done(name)
            if done:
                rows = [row for row in result.history.to_dict("records") if "loss" in row]
                for row in rows:
                    training.say(training.line(name, row, len(rows)))

    def result(self, name):
        """The stored result of a step, which is run first if need be."""
        return self.steps.done(name)

    def metrics(self, name):
        """The numbers of a step."""
        return self.steps.done(name).metrics

    def figure(self, name):
        """Draws a figure by name, saves it as PNG and PDF, and shows the PNG."""
        problem = 1 if name in gallery.PROBLEM1 else 2
        if not self.has[problem]:
            text = f"*Problem {problem} is absent: the data folder holds no p{problem}_data.*"
            return Markdown(text)
        path = self.out / "figures" / f"{name}.png"
        with figures.style():
            drawn = gallery.FIGURES[name](self)
            figures.save(drawn, path)
            figures.save(drawn, path.with_suffix(".pdf"))
        return Image(filename=str(path), width=round(drawn.get_figwidth() * 110))

    def table(self, name):
        """Saves a table as CSV where it is one of the report's, and shows it."""
        table = answers.TABLES[name](self)
        if any(name in saved for saved in answers.SAVED.values()):
            tables.write_csv(self.out / "tables" / f"{name}.csv", table)
        return Markdown(answers.printed(self, name, table))

    def code(self, *names):
        """Shows generated code or a printed network."""
        return Markdown("\n\n".join(f"```\n{prose.CODE[name](self)}\n```" for name in names))

    def say(self, *names):
        """Shows sentences that are computed from the results, a paragraph a name."""
        return Markdown("\n\n".join(prose.SENTENCES[name](self) for name in names))


def _live():
    """A figure for each training step that grows while one looks at it; None where nobody does."""
    if not get_ipython() or os.environ.get("HW1_HEADLESS"):
        return None
    shown = {}

    def watch(step, history):
        with figures.style():
            picture = Image(figures.png(figures.progress(step, history)))
        if step in shown:
            shown[step].update(picture)
        else:
            shown[step] = display(picture, display_id=True)

    return watch
