"""Profiles: complete sets of settings, read from TOML files.

The four in profiles/ are known by name. A user's own profile is given by its path; it may begin with `base = "demo"`
and then lists only what differs.
"""

import tomllib
from pathlib import Path

from hw1lib import paths
from hw1lib.errors import UserError, did_you_mean
from hw1lib.settings import DESCRIPTION, Profile, assign, replace

NAMES = ("smoke", "demo", "seed", "strong")


def get(profile, settings=None):
    """Return a profile, with some of its settings replaced.

    Args:
        profile: one of NAMES, or the path of a TOML file.
        settings: dict such as {"pretrain.epochs": 20}; values may be text, as from --set.

    Returns:
        settings.Profile; its name is that of the file without .toml.

    Raises:
        UserError: there is no such profile, or a setting does not exist or has a wrong value.
    """
    if not isinstance(settings or {}, dict):
        raise UserError(f"settings must be a dict such as {{'pretrain.epochs': 20}}, not {settings!r}.")
    result = _read(path(profile))
    for dotted, value in (settings or {}).items():
        result = replace(result, dotted, value)
    return result


def path(profile):
    """Return the absolute path of a profile's file."""
    if profile in NAMES:
        return paths.PROFILES / f"{profile}.toml"
    if Path(profile).suffix == ".toml":
        return Path(profile).expanduser().absolute()
    choices = f"Choose one of {', '.join(NAMES)}, or give the path of a file that ends in .toml."
    raise UserError(f"There is no profile {str(profile)!r}. {choices}{did_you_mean(str(profile), NAMES)}")


def _read(file):
    """Read a profile; a UserError names the file, what is wrong with it, and the remedy."""
    try:
        with open(file, "rb") as stream:
            content = tomllib.load(stream)
    except (OSError, ValueError) as error:  # a ValueError: neither UTF-8 nor TOML, or a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Profile {file}: {reason}. It must be a TOML file such as profiles/demo.toml.") from error
    try:
        base = content.pop("base", None)
        if base is None:
            profile = Profile(name=file.stem, about=f"settings of {file.name}")
        elif base in NAMES:
            about = f"profile {base}, changed by {file.name}"
            profile = get(base).model_copy(update={"name": file.stem, "about": about})
        else:
            raise UserError(f"There is no profile {base} to use as base. Choose one of {', '.join(NAMES)}.")
        for name in DESCRIPTION & content.keys():
            profile = assign(profile, name, content.pop(name))
        for name, value in content.items():
            is_group = isinstance(value, dict)
            for inner, setting in value.items() if is_group else [(name, value)]:
                profile = replace(profile, f"{name}.{inner}" if is_group else name, setting)
    except UserError as error:
        raise UserError(f"Profile {file}: {error}") from error
    return profile
