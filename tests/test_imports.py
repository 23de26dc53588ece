"""Imports: which part of the library may import which, and that importing it changes nothing else in a process."""

import ast
import functools
import subprocess
import sys

import pytest

from hw1lib import paths

MAX_LEVELS = 9
LAYERS = [  # from bottom to top: a module imports from its own layer and from those below it
    ["errors", "paths", "files", "kept", "settings", "profiles", "variants"],
    ["cpus", "processes", "progress", "provenance"],
    ["data", "metrics", "models"],
    ["loops"],
    ["chapters", "steps"],
    ["workbook"],
    ["cluster", "compare_runs", "evaluate", "predict", "report"],
    ["inputs", "terminal", "cli", "__main__"],
]
NEVER = {  # within a layer, or far below
    "metrics": {"models", "files", "paths", "settings"},
    "models": {"metrics", "settings", "profiles"},
    "data": {"models", "metrics", "profiles"},
    "chapters": {"loops", "steps"},
}


@functools.cache
def imports():
    """Return {module: set of the library's modules that it imports}, with names relative to hw1lib."""
    library = paths.ROOT / "hw1lib"
    names = {path: ".".join(path.relative_to(library).with_suffix("").parts) for path in library.rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in names.items() if name != "__init__"}
    result = {}
    for path, name in names.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        result[name] = {each.removeprefix("hw1lib.") for each in imported if each.startswith("hw1lib.")}
    return {name: (imported & result.keys()) - {name} for name, imported in result.items()}


@functools.cache
def level(module):
    """Return 1 for a module that imports nothing from the library, and one more than the highest import otherwise."""
    return 1 + max((level(other) for other in imports()[module]), default=0)


def test_there_are_few_import_levels():
    levels = {module: level(module) for module in imports()}
    assert max(levels.values()) <= MAX_LEVELS, sorted(levels.items(), key=lambda item: item[1])[-5:]


@pytest.mark.parametrize("module", imports())
def test_a_module_imports_from_its_own_layer_and_below(module):
    part = module.partition(".")[0]
    (layer,) = [number for number, parts in enumerate(LAYERS) if part in parts]
    allowed = {name for parts in LAYERS[: layer + 1] for name in parts} - NEVER.get(part, set())
    assert {other for other in imports()[module] if other.partition(".")[0] not in allowed} == set()


# In a process of its own: what the library imports, the state of everything global, the library, the state again.
LOOK = """
import ast, importlib, logging, os, random, signal, sys, warnings
from pathlib import Path

library = sorted(Path("hw1lib").rglob("*.py"))
nodes = [node for path in library for node in ast.walk(ast.parse(path.read_text()))]
names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
for name in sorted(name for name in names if name.partition(".")[0] != "hw1lib"):
    importlib.import_module(name)

import matplotlib, numpy, pandas, PIL.Image, torch, torch._dynamo.config, torch._inductor.config
from byol_pytorch import byol_pytorch
from torch.backends import cudnn

def look():
    functions = (torch.get_num_threads, torch.get_default_dtype, torch.is_grad_enabled, os.getcwd, random.getstate,
        torch.get_float32_matmul_precision, torch.are_deterministic_algorithms_enabled, matplotlib.get_backend)
    return {
        "functions": [function() for function in functions], "arrays": torch.get_rng_state().tolist(),
        "environment": dict(os.environ), "warnings": [str(entry) for entry in warnings.filters],
        "cudnn": (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, cudnn.enabled),
        "numpy": (str(numpy.random.get_state()), numpy.geterr(), numpy.get_printoptions()),
        "compilers": [str(c.config.get_config_copy()) for c in (torch._dynamo, torch._inductor)],
        "patches": [{n: id(v) for n, v in vars(m).items() if n[0] != "_"} for m in (byol_pytorch, torch, torch.nn)],
        "style": (dict(matplotlib.rcParams), PIL.Image.MAX_IMAGE_PIXELS, pandas.options.display.width),
        "logging": (logging.root.level, logging.root.handlers),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "system": (sys.excepthook, sys.displayhook, sys.path[:], sys.stdout, sys.stderr, sys.getrecursionlimit()),
    }

before = look()
for path in library:
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
after = look()
print([name for name in before if before[name] != after[name]])
"""


@pytest.mark.slow
def test_importing_the_library_changes_nothing_outside_of_it():
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


@pytest.mark.parametrize("broken", [False, True])
def test_building_a_learner_leaves_byol_pytorch_as_it_was(broken):
    """Even if it fails."""
    import byol_pytorch.byol_pytorch as package
    from torch import nn

    from hw1lib.models import byol
    from hw1lib.settings import Pretrain

    before, network = dict(vars(package)), nn.Sequential()
    network.add_module("other" if broken else "avgpool", nn.Conv2d(3, 4, 3))
    with pytest.raises(AssertionError, match="avgpool") if broken else pytest.MonkeyPatch.context():
        byol.learner(network, 16, Pretrain(projection_size=8, projection_hidden_size=16))
    assert dict(vars(package)) == before
