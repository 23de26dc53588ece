"""Every setting of a profile, and for each another value that is allowed."""

import dataclasses

from hw1lib import profiles, settings


def leaves(part, prefix=""):
    """(dotted name, value) of every setting of a profile."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if not prefix and field.name in settings.FIXED:
            continue
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def other(dotted, value):
    """A value of the same type that is not `value`, inside what the field allows."""
    owner = profiles.get("demo")
    *groups, name = dotted.split(".")
    for group in groups:
        owner = getattr(owner, group)
    allowed = {field.name: field.metadata for field in dataclasses.fields(owner)}[name]
    if "choices" in allowed:
        return next(choice for choice in allowed["choices"] if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        high = allowed.get("high", value + 1)
        return value + 1 if value + 1 <= high else value / 2 or high
    return (*value, "0009") if isinstance(value, tuple) else value + "x"
