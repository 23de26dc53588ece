"""Notebook 02: how the demo's settings were chosen, on training images only."""

import operator

import pandas as pd

from hw1lib import paths
from hw1lib.chapters.phrases import sentences


def table(profile):
    """Return the trials of report/recipe.csv; column `adopted` marks those whose settings the profile has."""
    trials = pd.read_csv(paths.RECIPE, keep_default_na=False)
    return trials.assign(adopted=["yes" if _matches(profile, settings) else "" for settings in trials["settings"]])


def _matches(profile, settings):
    """Return whether a profile has settings given as "lraspp.lr = 0.001, lraspp.loss = lovasz"."""
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
    trials = {"trials": trials["trial"].nunique(), "hours": hours, "folds": folds, "best": best}
    return sentences("recipe", simple=simple, **trials)
