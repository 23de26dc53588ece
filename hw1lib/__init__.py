"""The library behind the HW1 workbook; notebooks start at `hw1lib.workbook`."""

import warnings

# Some dependencies look for notebook widgets, which nothing here uses, and warn with a path.
warnings.filterwarnings("ignore", message="IProgress not found")
