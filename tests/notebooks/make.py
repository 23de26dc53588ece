"""Executes the notebooks: the committed ones with the demo, and the smoke copies that nbval compares.

`make notebooks` calls it. A smoke copy has the same cells, with profile smoke and with each *Try it* as a cell of its
own below its text, so that the tests run those, too. It runs on one thread, as tests do: bits depend on it.
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from hw1lib import paths

COPIES = Path(__file__).parent
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
        nbformat.write(execute(source), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
