"""Why a step has to run: what differs from the results that there are."""


def reason(wanted, finished):
    """What differs between a step's config and the most similar of its finished results.

    Args:
        wanted: config of the step, as steps.Steps.config gives it.
        finished: configs of its finished results, of other keys.

    Returns:
        A phrase such as "pretrain.epochs 6 → 8; pretrain is another".
    """
    if not finished:
        return "it never ran to its end"
    wanted = _flat(wanted)
    differences = (_differences(_flat(config), wanted) for config in finished)
    return "; ".join(min(differences, key=len)) or "its results are gone"


def _flat(config, above=()):
    """Nested groups as one dict from path to value."""
    flat = {}
    for name, value in config.items():
        here = (*above, name)
        flat |= _flat(value, here) if isinstance(value, dict) else {here: _plain(value)}
    return flat


def _plain(value):
    return tuple(value) if isinstance(value, list) else value  # as JSON has no tuples


def _differences(before, now):
    paths = [path for path in {**now, **before} if before.get(path) != now.get(path)]
    return [_phrase(path, before, now) for path in paths]


def _phrase(path, before, now):
    kind, name = path[0], ".".join(path[1:]).removeprefix("profile.")
    if kind == "upstream":
        return f"{name} is another"
    if kind == "data":
        return f"the data changed ({name})"
    if kind == "version":
        return "its code computes something else now"
    if path not in before:
        return f"{name} is new"
    if path not in now:
        return f"{name} is gone"
    return f"{name} {_text(before[path])} → {_text(now[path])}"


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
