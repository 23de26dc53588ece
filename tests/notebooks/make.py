"""Execute the notebooks: the committed ones on the published demo, and the smoke copies that nbval compares.

    python -m tests.notebooks.make [smoke | demo] [NAME …]     both parts and all notebooks without arguments

The committed notebooks load what `make publish` published, with its settings (such as the number of seeds). They show
what the report shows; their own parameters stay the plain demo's. A smoke copy has the same cells, with profile smoke,
and runs each *Try it* as a cell below its text. It runs on one thread, as tests do, because results depend on it.
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
    """Return the cells of a committed notebook as tests run them, without outputs."""
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
            cells.append(nbformat.v4.new_code_cell(code, id=f"{cell.id}-run", metadata={"tags": ["try-it"]}))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def published_settings():
    """Return the settings of the published demo that differ from profile demo, as notebooks take them."""
    current = flatten(profiles.get("demo"))
    published = pd.json_normalize(files.read_json(DEMO_REPORT / "metrics.json")["settings"]).iloc[0].to_dict()
    typed = {k: type(value)(published[k]) for k, value in current.items() if published.get(k) is not None}
    return {name: value for name, value in typed.items() if value != current[name]}


def execute_published(notebook):
    """Execute a committed notebook in place on the published results; it keeps into a temporary folder."""
    build = paths.BUILD / "demo"
    if not filecmp.cmp(build / "metrics.json", DEMO_REPORT / "metrics.json", shallow=False):
        sys.exit(f"{build} does not hold the report published in {DEMO_REPORT}. Run make publish, then this again.")
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    source = parameters.source
    with tempfile.TemporaryDirectory() as out:
        for name in ("steps", "decoded"):
            (Path(out) / name).symlink_to(build / name)
        planned = Workbook("demo", out=out, settings=published_settings()).planned()
        if undone := [label for label, steps, name in planned if steps.status(name) != "done"]:
            sys.exit(f"{build} lacks {', '.join(undone)}. Run make report and make publish, then this again.")
        parameters.source = source.replace('out = ""', f"out = {out!r}").replace("{}", repr(published_settings()))
        execute(notebook)
    parameters.source = source
    return notebook


def execute(notebook, **variables):
    """Execute a notebook in place, without recording times; `variables` are added to its environment."""
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": paths.NOTEBOOKS}}, extra_arguments=["--IPKernelApp.log_level=40"],
    ).execute(env=os.environ | variables)  # fmt: skip
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def main(*arguments):
    """Execute the parts and notebooks that the arguments name; a name may be the beginning of a file name."""
    os.environ["PYTHONWARNINGS"] = "ignore"
    parts = [argument for argument in arguments if argument in ("smoke", "demo")] or ["smoke", "demo"]
    names = tuple(argument for argument in arguments if argument not in parts) or ""
    for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        if path.name.startswith(names):
            print(path.name, flush=True)
            source = nbformat.read(path, as_version=4)
            if "smoke" in parts:
                nbformat.write(execute(smoke_copy(source), OMP_NUM_THREADS="1"), COPIES / path.name)
            if "demo" in parts:
                nbformat.write(execute_published(source), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
