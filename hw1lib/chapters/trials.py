"""Notebook 02: how the demo's settings were chosen, on training images alone."""

import operator

import pandas as pd

from hw1lib import paths
from hw1lib.chapters.phrases import percent


def table(profile):
    """The trials, and which of them this profile agrees with; `profile` is a settings.Profile."""
    found = pd.read_csv(paths.RECIPE, keep_default_na=False)
    return found.assign(taken=["yes" if agrees(profile, chosen) else "" for chosen in found["settings"]])


def agrees(profile, chosen):
    """Whether a profile has settings such as "lraspp.lr = 0.001, lraspp.loss = lovasz"."""
    pairs = [pair.split(" = ") for pair in chosen.split(", ") if pair]
    return all(str(operator.attrgetter(name)(profile)) == value for name, value in pairs)


def in_words(trials, control):
    """What was tried, how it was scored, and how long it took.

    Args:
        trials: as of `table`.
        control: metrics of step control-simple.
    """
    hours = pd.to_numeric(trials["minutes"]).sum() / 60
    folds = trials.loc[trials["problem"] == 1, "folds"].max()
    best = trials[trials["of"] == "E"]["score"].max()
    simple = max(control["folds"].values(), default=None)
    reached = "could not be measured" if simple is None else f"reaches {percent(simple)}"
    return (
        f"{trials['trial'].nunique()} settings of the demo were tried on parts of its training images, whole blocks of "
        f"the Earth held out, with one seed each, in {hours:.1f} hours on one thread of a CPU; no validation image "
        f"took part. Scores are those of the last epoch: the mean accuracy over {folds} folds for Problem 1, LR-ASPP's "
        "mIoU on one part held out for Problem 2. What a setting gains here is no more than such folds tell from "
        "chance; one was changed only where that costs no time. On the same folds, the best classifier of colour and "
        f"texture (control *simple*) {reached}, setting E in the best of the trials {percent(best)}."
    )
