"""The one exception for everything that a user can cause and mend."""

import difflib
import errno
import os
import re

STOPPED = "hw1lib: stopped. Finished steps are kept; the same command goes on from there."
# What torch says on its devices, and its loader of files; Python has MemoryError.
OUT_OF_MEMORY = re.compile("(out of|allocate) (shared )?memory|ALLOC_FAILED|by signal: (Killed|Bus error)")


class UserError(Exception):
    """A clear paragraph: what is wrong, in which file or setting, and the remedy.

    The command line prints its text without a traceback and exits with 1. What cannot be printed,
    as in odd file names, is shown by its code: one line stays one line.
    """

    def __init__(self, text):
        shown = (c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
        super().__init__("".join(shown))


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


def remedy(error):
    """What helps when the file system refuses: a sentence."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "Free some disk space"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "Mend the permissions of its folder, or choose another one"
    elif number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        what = "Choose another place"
    else:  # torch and safetensors do not say which
        what = "Free some disk space or mend the permissions of its folder"
    return f"{what}, then run the same command again."


def did_you_mean(name, known):
    """A sentence that suggests the known name most similar to `name`, whatever its case; empty if none is similar."""
    by_lower = {other.lower(): other for other in known}
    similar = difflib.get_close_matches(name.lower(), by_lower)
    shared = [len(os.path.commonprefix([name.lower(), other])) for other in similar]  # noqa: RUF071 (of letters)
    return f" Did you mean {by_lower[similar[shared.index(max(shared))]]}?" if similar else ""


def out_of_memory(error):
    """Whether an error says that memory ran out, on whatever device."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))
