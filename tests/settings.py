"""Every setting of a profile, and for each another value that is allowed."""

import functools

import pydantic

from hw1lib import profiles


def allowed(dotted):
    """What a setting may be, as its JSON schema has it: type, enum, minimum, maximum."""
    *groups, name = dotted.split(".")
    owner = functools.reduce(getattr, groups, profiles.get("demo"))
    return pydantic.TypeAdapter(type(owner)).json_schema()["properties"][name]


def other(dotted, value):
    """A value of the same type that is not `value`, inside what the field allows."""
    schema = allowed(dotted)
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        high = schema.get("maximum", value + 1)
        return value + 1 if value + 1 <= high else value / 2 or high
    return (*value, "0009") if isinstance(value, tuple) else value + "x"
