"""The original report's numbers, to stand beside ours where they compare."""

import functools
import tomllib

from hw1lib import paths


@functools.cache
def numbers():
    """The original report's numbers and the course's baselines, from report/original.toml."""
    return tomllib.loads(paths.ORIGINAL.read_text(encoding="utf-8"))


def comparable(book, problem):
    """Whether this data has the counts of the course's, so that its numbers may stand beside."""
    counts = numbers()[f"problem{problem}"]["course_data"]
    if problem == 1:
        data = book.data.problem1
        return (len(data.val), len(data.classes)) == (counts["validation"], counts["classes"])
    return len(book.data.problem2.validation) == counts["validation"]
