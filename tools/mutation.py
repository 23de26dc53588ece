"""Do the tests notice a fault? Those of faults.toml, each put into a copy of the library, one at a time.

    .venv/bin/python tools/mutation.py [PART of a function's or file's name …]

Each fault is run against the tests that mirror its file, then against the others of that folder. Takes
about half an hour for all; a fault that no test notices is printed as "survived".
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(os.environ.get("MUTATED", Path(__file__).parents[1]))  # another checkout, to compare two
FAULTS = tomllib.loads(Path(__file__).with_name("faults.toml").read_text())["faults"]


def place(root, function, old):
    """The one file and the position in its text where `function` holds `old`."""
    found = []
    for path in sorted((root / "hw1lib").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                start = len("".join(text.splitlines(keepends=True)[: node.lineno - 1]))
                source = ast.get_source_segment(text, node)
                if old in source:
                    found.append((path.relative_to(root), start + text[start:].index(old)))
    if len(set(found)) != 1:
        raise SystemExit(f"{function}: {old!r} stands in {len(set(found))} functions, not in one")
    return found[0]


def notice(root, function, old, new):
    """Whether a test fails once `old` in `function` is `new`, in a copy of the project at `root`."""
    path, at = place(root, function, old)
    part, module = path.parts[1], f"test_{path.name}"
    mirrors = [f"tests/{part}/{module}", f"tests/{module}", f"tests/{part}"]
    tests = [name for name in mirrors if (root / name).exists()]
    text = (root / path).read_text()
    (root / path).write_text(text[:at] + new + text[at + len(old) :])
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return True  # it hangs: that is noticed
    finally:
        (root / path).write_text(text)
    if done.returncode > 1:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.returncode == 1


def main(parts):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "copy")
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "build", "earth", "wheels", "__pycache__"))
        for name in ("earth", "wheels"):
            (root / "data" / name).symlink_to(Path(__file__).parents[1] / "data" / name)
        places = [(str(place(root, function, old)[0]), (function, old, new)) for function, old, new in FAULTS]
        chosen = [(p, f) for p, f in places if not parts or any(part in f"{p} {f[0]}" for part in parts)]
        caught = 0
        for path, fault in chosen:
            noticed = notice(root, *fault)
            caught += noticed
            print(f"{'noticed ' if noticed else 'survived'}  {path} {fault[0]}: {fault[1]}", flush=True)
        print(f"{caught} of {len(chosen)} noticed")


if __name__ == "__main__":
    main(sys.argv[1:])
