"""The folders and files of the project."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

NOTEBOOKS = ROOT / "notebooks"
PROFILES = ROOT / "profiles"  # settings as TOML files

DATA = ROOT / "data"
WHEELS = DATA / "wheels"  # from which the Earth sample is built
WHEEL_HASHES = DATA / "sample.txt"
EARTH = DATA / "earth"  # the Earth sample, in the layout of the course data
WEIGHTS = DATA / "weights"  # optional weights, such as SAM's

REPORT = ROOT / "report"
BUILD = Path(os.environ.get("HW1_BUILD") or REPORT / "build")  # one folder for each profile
ORIGINAL = REPORT / "original.toml"  # the original report's numbers
RECIPE = REPORT / "recipe.csv"  # the trials that chose the demo's settings
STYLE = REPORT / "figures.mplstyle"
TEMPLATE = REPORT / "report.md.j2"
SENTENCES = REPORT / "sentences.j2"  # the words of what is computed
ABOUT = REPORT / "about.toml"
NOTES = REPORT / "notes"  # the author's own paragraphs
