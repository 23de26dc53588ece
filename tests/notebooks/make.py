"""Execute the notebooks: the committed ones on the published demo, and the smoke copies that nbval compares.

`make notebooks` calls it. The committed ones load what `make publish` published, with its settings, such as its
number of seeds, though their own parameters stay the plain demo's; so they show what the report shows. A smoke copy
has the same cells, with profile smoke and with each *Try it* as a cell of its own below its text, so that the tests
run those, too. It runs on one thread, as tests do: bits depend on it.
"""

import filecmp
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient

from hw1lib import files, paths, profiles
from hw1lib.settings import flatten
from hw1lib.workbook import Workbook

COPIES = Path(__file__).parent
DEMO_REPORT = paths.REPORT / "demo"
DEMO, SMOKE = 'profile = "demo"', 'profile = "smoke"'


def smoke_copy(notebook):
    """The cells of a committed notebook as tests run them, without outputs."""
    cells = []
    for cell in notebook.cells:
        cell = nbformat.from_dict({k: v for k, v in cell.items() if k in ("id", "cell_type", "source", "metadata")})
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
            cell.source = cell.source.replace(DEMO, SMOKE) if "parameters" in cell.metadata["tags"] else cell.source
        cells.append(cell)
        if cell.source.startswith("**Try it.**"):
            (code,) = re.findall(r"```python\n(.*?)\n```", cell.source, re.S)
            more = nbformat.v4.new_code_cell(code, id=f"{cell.id}-run", metadata={"tags": ["try-it"]})
            cells.append(more)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def published():
    """Return the settings of the published demo that are not profile demo's: a dict, as notebooks take them."""
    now = flatten(profiles.get("demo"))
    then = pd.json_normalize(files.read_json(DEMO_REPORT / "metrics.json")["settings"]).iloc[0].to_dict()
    same_type = {name: type(value)(then[name]) for name, value in now.items() if then.get(name) is not None}
    return {name: value for name, value in same_type.items() if value != now[name]}


def execute_published(notebook):
    """Run a committed notebook in place on the published results; what it keeps goes to a folder of its own."""
    build = paths.BUILD / "demo"
    if not filecmp.cmp(build / "metrics.json", DEMO_REPORT / "metrics.json", shallow=False):
        sys.exit(
            f"{build} does not hold the report that is published in {DEMO_REPORT}: run make publish, then this again."
        )
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    source = parameters.source
    with tempfile.TemporaryDirectory() as out:
        for name in ("steps", "decoded"):
            (Path(out) / name).symlink_to(build / name)
        undone = [label for label, steps, name in Workbook("demo", out=out, settings=published()).planned()
                  if steps.status(name) != "done"]  # fmt: skip
        if undone:
            sys.exit(f"{build} lacks {', '.join(undone)} as the code is now: run make report and make publish again.")
        parameters.source = source.replace('out = ""', f"out = {out!r}").replace("{}", repr(published()))
        execute(notebook)
    parameters.source = source
    return notebook


def execute(notebook, **variables):
    """Runs a notebook in place, from their folder, with more environment variables; no times are noted."""
    where = {"metadata": {"path": paths.NOTEBOOKS}}
    quiet = ["--IPKernelApp.log_level=40"]
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False, resources=where, extra_arguments=quiet
    ).execute(env=os.environ | variables)
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def main(*names):
    """Executes the notebooks whose names begin so; all without any name."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        if names and not path.name.startswith(names):
            continue
        print(path.name, flush=True)
        source = nbformat.read(path, as_version=4)
        nbformat.write(execute(smoke_copy(source), OMP_NUM_THREADS="1"), COPIES / path.name)
        nbformat.write(execute_published(source), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
