"""Mutation testing: put each fault of faults.toml into a copy of the library, and see whether a test fails.

    .venv/bin/python tools/mutation.py [PART of a function's or file's name …]

The tests that mirror the file run first, then the others of their folder, or those of the command line. All faults take
about half an hour. A fault that no test notices is printed as "survived".
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(os.environ.get("MUTATED", Path(__file__).parents[1]))  # MUTATED: another checkout to test, to compare both
FAULTS = tomllib.loads(Path(__file__).with_name("faults.toml").read_text())["faults"]


def place(root, function, old):
    """Return the file, and the position in its text, where `function` contains `old`; exit unless exactly one does."""
    places = []
    for path in sorted((root / "hw1lib").rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if old in text else ():
            if isinstance(node, ast.FunctionDef) and node.name == function:
                start = len("".join(text.splitlines(keepends=True)[: node.lineno - 1]))
                source = ast.get_source_segment(text, node)
                if old in source:
                    places.append((path.relative_to(root), start + text[start:].index(old)))
    if len(set(places)) != 1:
        raise SystemExit(f"{function}: {old!r} is in {len(set(places))} functions, not in one")
    return places[0]


def is_noticed(root, function, old, new):
    """Return whether a test fails after `old` in `function` was replaced by `new`, in a copy of the project."""
    path, at = place(root, function, old)
    part, module = path.parts[1], f"test_{path.name}"
    mirrors = [f"tests/{part}/{module}", f"tests/{module}", f"tests/{part}"]
    tests = [name for name in mirrors if (root / name).exists()] or ["tests/test_cli.py"]
    text = (root / path).read_text()
    (root / path).write_text(text[:at] + new + text[at + len(old) :])
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return True  # the fault makes a test hang
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
            noticed = is_noticed(root, *fault)
            caught += noticed
            print(f"{'noticed ' if noticed else 'survived'}  {path} {fault[0]}: {fault[1]}", flush=True)
        print(f"{caught} of {len(chosen)} noticed")


if __name__ == "__main__":
    main(sys.argv[1:])
