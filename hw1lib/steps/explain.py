"""Why a step has to run: what differs from the results that there are."""

import json

import pandas as pd


def reason(wanted, finished):
    """What differs between a step's config and the most similar of its finished results.

    Args:
        wanted: config of the step, as run.Steps.config gives it.
        finished: configs of its finished results, of other keys.

    Returns:
        A phrase such as "pretrain.epochs 6 → 8; pretrain is another".
    """
    if not finished:
        return "it never ran to its end"
    wanted = _flat(json.loads(json.dumps(wanted)))  # as stored: JSON has no tuples
    least = min((_differences(_flat(config), wanted) for config in finished), key=len)
    return "; ".join(least) or "its results are gone"


def _flat(config):
    """Nested groups as one dict from dotted name to value."""
    return pd.json_normalize(config).iloc[0].to_dict()


def _differences(before, now):
    """A phrase for each value that is another; "–" stands for none."""
    before, now = ({dotted: flat.get(dotted, "–") for dotted in {**now, **before}} for flat in (before, now))
    return [_phrase(dotted, before[dotted], now[dotted]) for dotted in now if before[dotted] != now[dotted]]


def _phrase(dotted, before, now):
    kind, _, name = dotted.replace("settings.profile.", "settings.").partition(".")
    if kind == "upstream":
        return f"{name} is another"
    if kind == "data":
        return f"the data changed ({name})"
    if kind == "version":
        return "its code computes something else now"
    return f"{name} {before} → {now}"
