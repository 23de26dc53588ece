"""Notebook 02: how the demo's settings were chosen, from training images alone."""

import operator

import pandas as pd

from hw1lib import paths
from hw1lib.chapters.phrases import percent


def table(profile):
    """Return the trials of report/recipe.csv; column taken marks those whose settings the settings.Profile has."""
    trials = pd.read_csv(paths.RECIPE, keep_default_na=False)
    return trials.assign(taken=["yes" if _matches(profile, settings) else "" for settings in trials["settings"]])


def _matches(profile, settings):
    """Whether a profile has settings such as "lraspp.lr = 0.001, lraspp.loss = lovasz"."""
    pairs = [pair.split(" = ") for pair in settings.split(", ") if pair]
    return all(str(operator.attrgetter(name)(profile)) == value for name, value in pairs)


def in_words(trials, control):
    """Return a paragraph on what was tried, how it was scored, and how long it took.

    Args:
        trials: table returned by `table`.
        control: metrics of step control-simple.
    """
    hours = pd.to_numeric(trials["minutes"]).sum() / 60
    folds = trials.loc[trials["problem"] == 1, "folds"].max()
    best = trials[trials["of"] == "E"]["score"].max()
    simple = max(control["folds"].values(), default=None)
    score = "was not measured" if simple is None else f"reaches {percent(simple)}"
    return (
        f"{trials['trial'].nunique()} variants of the demo's settings were compared on its training images, with whole "
        f"blocks of the Earth held out and one seed each, in {hours:.1f} hours on one CPU thread; no validation image "
        f"was used. Scores are from the last epoch: the mean accuracy over {folds} folds for Problem 1, and the mIoU "
        "of LR-ASPP on one held-out part for Problem 2. Gains of this size may be chance on such folds; a setting was "
        "changed only where that costs no time. On the same folds, the best classifier on colour and texture (control "
        f"*simple*) {score}, and setting E reaches {percent(best)} in the best trial."
    )
