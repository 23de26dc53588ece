"""All tests of chapters draw in the report's style."""

import matplotlib
import pytest

from hw1lib.chapters import style


@pytest.fixture(autouse=True)
def report_style():
    with matplotlib.rc_context():
        style.use()
        yield
