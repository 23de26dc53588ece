"""The data doctor: reads all data once and says what is wrong with it, before anything trains.

An error makes a run impossible or meaningless. A warning weakens numbers, and the report shows it
next to them. Every sentence names its folder or file, and errors say what to do.
"""

from pathlib import Path

from hw1lib.data import layout
from hw1lib.data.check import findings
from hw1lib.data.check.check_images import problem1
from hw1lib.data.check.check_table import table
from hw1lib.data.check.check_tiles import problem2
from hw1lib.data.check.findings import Diagnosis
from hw1lib.errors import UserError, remedy
from hw1lib.settings import Data

__all__ = ["Diagnosis", "examine", "problem1", "problem2", "table"]


def examine(root, progress=True):
    """Examines a data root.

    Args:
        root: folder that holds p1_data/, p2_data/ or both.
        progress: whether a bar is shown on standard error, if that is a terminal.

    Returns:
        Plain JSON: errors and warnings, and the facts of "p1" and "p2"; None for what is not there.
    """
    found = {"errors": [], "warnings": [], "p1": None, "p2": None}
    try:
        for number, of_folder in ((1, problem1), (2, problem2)):
            folder = Path(root) / f"p{number}_data"
            if folder.is_dir():
                diagnosis = of_folder(folder, progress)
                found[f"p{number}"] = diagnosis.facts
                found["errors"] += [f"Problem {number}: {text}" for text in diagnosis.errors]
                found["warnings"] += [f"Problem {number}: {text}" for text in diagnosis.warnings]
        if not found["errors"]:
            layout.find(root, Data())  # what a run would refuse must not pass
    except UserError as error:
        found["errors"].append(findings.printable(str(error)))
    except OSError as error:  # such as missing permissions
        text = f"{error.filename}: {error.strerror}. {remedy(error)}"
        found["errors"].append(findings.printable(text))
    return found
