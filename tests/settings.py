"""For each setting of a profile, what is allowed and another value."""

import functools

from hw1lib.settings import Profile


def allowed(dotted):
    """Return the JSON schema of a setting, with type, enum, minimum and maximum."""
    group, _, name = dotted.rpartition(".")
    return _properties(Profile.model_fields[group].annotation if group else Profile)[name]


@functools.cache
def _properties(group):
    return group.model_json_schema()["properties"]


def other(dotted, value):
    """Return a value that differs from `value`, of the same type and allowed by the schema."""
    schema = allowed(dotted)
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        high = schema.get("maximum", value + 1)
        return value + 1 if value + 1 <= high else value / 2 or high
    return (*value, "0009") if isinstance(value, tuple) else value + "x"
