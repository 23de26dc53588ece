"""Why a step has to run: what differs from the results that there are."""

import json


def reason(wanted, finished):
    """What differs between a step's config and the most similar of its finished results.

    Args:
        wanted: config of the step, as graph.Steps.config gives it.
        finished: configs of its finished results, of other keys.

    Returns:
        A phrase such as "pretrain.epochs 6 → 8; pretrain is another".
    """
    if not finished:
        return "it never ran to its end"
    wanted = _flat(json.loads(json.dumps(wanted)))  # as stored: JSON has no tuples
    return (
        "; ".join(min((_differences(_flat(config), wanted) for config in finished), key=len)) or "its results are gone"
    )


def _flat(config, above=()):
    """Nested groups as one dict from path to value."""
    flat = {}
    for name, value in config.items():
        here = (*above, name)
        flat |= _flat(value, here) if isinstance(value, dict) else {here: value}
    return flat


def _differences(before, now):
    """A phrase for each value that is another; "–" stands for none."""
    before, now = ({path: flat.get(path, "–") for path in {**now, **before}} for flat in (before, now))
    return [_phrase(*path, before=before[path], now=now[path]) for path in now if before[path] != now[path]]


def _phrase(kind, *name, before, now):
    name = ".".join(name).removeprefix("profile.")
    if kind == "upstream":
        return f"{name} is another"
    if kind == "data":
        return f"the data changed ({name})"
    if kind == "version":
        return "its code computes something else now"
    return f"{name} {before} → {now}"
