"""The one exception for everything that a user can cause and mend."""

import difflib
import errno
import os
import re

STOPPED = "stopped. Finished steps are kept; the same command goes on from there."
# What torch says on its devices, and its loader of files; Python has MemoryError.
OUT_OF_MEMORY = re.compile("(out of|allocate) (shared )?memory|ALLOC_FAILED|by signal: (Killed|Bus error)")


class UserError(Exception):
    """A clear paragraph: what is wrong, in which file or setting, and the remedy.

    The command line prints its text without a traceback and exits with 1. What cannot be printed,
    as in odd file names, is shown by its code: one line stays one line.
    """

    def __init__(self, text):
        super().__init__(visible(str(text)))


def visible(text):
    """Text in one line: characters that cannot be printed or seen, such as tabs and no-break spaces, as their code."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Diverged(UserError):
    """A training whose loss or weights are not finite.

    Attributes:
        rate: the learning rate that its settings name.
        files: names of the images that gave such a loss; empty where they are not known.
    """

    def __init__(self, text, rate, files=()):
        super().__init__(text)
        self.rate = rate
        self.files = list(files)


REMEDIES = {
    "Free some disk space": "ENOSPC EDQUOT EFBIG",
    "Mend the permissions of its folder, or choose another one": "EACCES EPERM EROFS",
    "Choose another place": "ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP ENOTEMPTY EXDEV ENOLCK ENOSYS EOPNOTSUPP",
    "Check that its folder exists and the path is right": "ENOENT",
    "Check that the disk is connected, healthy and not full": "EIO ENXIO ENODEV ESTALE",
    "Close other programs": "ENOMEM EAGAIN",
    "Check the network connection": "ECONNRESET ECONNREFUSED ECONNABORTED ETIMEDOUT ENETUNREACH EHOSTUNREACH EPIPE",
    "Raise the limit of open files (ulimit -n)": "EMFILE ENFILE",
}


def remedy(error):
    """The sentence that says what helps against an OSError, by its errno."""
    name = errno.errorcode.get(getattr(error, "errno", None))
    what = next((what for what, names in REMEDIES.items() if name in names.split()), "Remove the cause")
    return f"{what}, then run the same command again."


def did_you_mean(name, known):
    """A sentence that suggests the known name most similar to `name`, whatever its case; empty if none is similar."""
    by_lower = {other.lower(): other for other in known}
    similar = difflib.get_close_matches(name.lower(), by_lower)
    shared = [len(os.path.commonprefix([name.lower(), other])) for other in similar]  # noqa: RUF071 (of letters)
    return f" Did you mean {by_lower[similar[shared.index(max(shared))]]}?" if similar else ""


def out_of_memory(error):
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, RuntimeError):
        return bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def is_damage(error):
    """Whether the contents of a file can have caused an exception: not memory, a device, the system or an import."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL  # from seeking to a negative offset that the file names
    beyond = isinstance(error, ImportError | NameError) or type(error).__name__ == "AcceleratorError"
    return not beyond and not out_of_memory(error)
