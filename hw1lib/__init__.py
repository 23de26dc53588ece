"""The library behind the HW1 workbook; notebooks start at `hw1lib.workbook`."""

import os
import warnings

# Weights are numbers: no file that torch loads may bring code, torchvision's downloads included.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch refuses both at once

# Some dependencies look for notebook widgets, which nothing here uses, and warn with a path.
warnings.filterwarnings("ignore", message="IProgress not found")
