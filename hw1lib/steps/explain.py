"""Explain why a step has to run: how its config differs from those of finished results."""

import json

import pandas as pd


def reason(config, finished):
    """Return how a step's config differs from the most similar config of its finished results.

    Args:
        config: as returned by run.Steps.config.
        finished: list of the configs of its finished results, under other keys.

    Returns:
        A phrase such as "pretrain.epochs 6 → 8; pretrain changed".
    """
    if not finished:
        return "it has never finished"
    after = _flatten(json.loads(json.dumps(config)))  # as stored: JSON has no tuples
    fewest = min((_differences(_flatten(before), after) for before in finished), key=len)
    return "; ".join(fewest) or "its result is missing"


def _flatten(config):
    """Return nested dicts as one dict from dotted name to value."""
    return pd.json_normalize(config).iloc[0].to_dict()


def _differences(before, after):
    """Return a phrase for each value that differs, with "–" for a missing one."""
    before, after = ({name: flat.get(name, "–") for name in {**after, **before}} for flat in (before, after))
    return [_phrase(name, before[name], after[name]) for name in after if before[name] != after[name]]


def _phrase(dotted, before, after):
    kind, _, name = dotted.replace("settings.profile.", "settings.").partition(".")
    phrases = {"upstream": f"{name} changed", "data": f"the data changed ({name})", "version": "its code changed"}
    return phrases.get(kind, f"{name} {before} → {after}")
