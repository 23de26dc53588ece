"""Fixtures for the tests of experiments."""

import pytest

from hw1lib.data import layout
from hw1lib.settings import Data


@pytest.fixture
def problem1(course_data):
    """Problem 1 of the small course folder, whose classes differ in colour."""
    return layout.find(course_data, Data()).problem1
