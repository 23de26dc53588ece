"""Errors that a user can cause and fix, and remedies for system errors."""

import difflib
import errno
import os
import re

STOPPED = "stopped. Finished steps are kept; run the same command again to continue."
# How torch and its data loaders report that memory ran out.
OUT_OF_MEMORY = re.compile("(out of|allocate) (shared )?memory|ALLOC_FAILED|by signal: (Killed|Bus error)")


class UserError(Exception):
    """An error that the user can fix: one line that names the file or setting, what is wrong, and the remedy.

    The command line prints it without a traceback and exits with 1.
    """

    def __init__(self, text):
        super().__init__(visible(str(text)))


def visible(text):
    """Return text in one line: characters that cannot be printed or seen, such as tabs, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Diverged(UserError):
    """The loss or the weights of a training are not finite.

    Attributes:
        rate: learning rate of the settings.
        files: names of the images of the batch; empty if they are not known.
    """

    def __init__(self, text, rate, files=()):
        super().__init__(text)
        self.rate = rate
        self.files = list(files)


REMEDIES = {  # advice: the names of its errnos
    "Free some disk space": "ENOSPC EDQUOT EFBIG",
    "Fix the permissions of its folder, or choose another one": "EACCES EPERM EROFS",
    "Choose another place": "ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP ENOTEMPTY EXDEV ENOLCK ENOSYS EOPNOTSUPP",
    "Check that its folder exists and the path is right": "ENOENT",
    "Check that the disk is connected, healthy and not full": "EIO ENXIO ENODEV ESTALE",
    "Close other programs": "ENOMEM EAGAIN",
    "Check the network connection": "ECONNRESET ECONNREFUSED ECONNABORTED ETIMEDOUT ENETUNREACH EHOSTUNREACH EPIPE",
    "Raise the limit of open files (ulimit -n)": "EMFILE ENFILE",
}


def remedy(error):
    """Return a sentence that tells the user how to fix an OSError, by its errno."""
    name = errno.errorcode.get(getattr(error, "errno", None))
    advice = next((advice for advice, names in REMEDIES.items() if name in names.split()), "Remove the cause")
    return f"{advice}, then run the same command again."


def reason(error):
    """Return the innermost reason of a failed download, in a few words."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    if isinstance(inner, Exception):
        return reason(inner)
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name, known):
    """Return a sentence that suggests the known name most similar to `name`; empty if none is similar."""
    by_lower = {other.lower(): other for other in known}
    similar = difflib.get_close_matches(name.lower(), by_lower)
    if not similar:
        return ""
    best = max(similar, key=lambda other: len(os.path.commonprefix([name.lower(), other])))  # noqa: RUF071 (of letters)
    return f" Did you mean {by_lower[best]}?"


def out_of_memory(error):
    """Return whether an exception means that memory ran out, on any device."""
    if isinstance(error, RuntimeError):
        return bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def is_damage(error):
    """Return whether an exception can be due to a damaged file, not to memory, a device, the system or an import."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL  # from seeking to a negative offset that the file names
    other = isinstance(error, ImportError | NameError) or type(error).__name__ == "AcceleratorError"
    return not other and not out_of_memory(error)
