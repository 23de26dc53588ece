"""Shared by the tests of the data: the rasters that the Earth sample is cut from."""

import pytest

from hw1lib import paths
from tools import earth_sample


@pytest.fixture(scope="session")
def rasters():
    """The whole image, and the land cover on its grid."""
    return earth_sample.read_rasters(*earth_sample.fetch_wheels(paths.WHEELS))
