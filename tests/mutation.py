"""Do the tests notice a fault? Sixty small faults, each put into a copy of the library, one at a time.

    .venv/bin/python tests/mutation.py [PART of a function's or file's name …]

Each fault is run against the tests that mirror its file, then against the others of that folder. Takes
about half an hour for all; a fault that no test notices is printed as "survived".
"""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(os.environ.get("MUTATED", Path(__file__).parents[1]))  # another checkout, to compare two
FAULTS = [  # function, what stands there, what stands there instead
    # loops
    ("normalise", "images.float() / 255 if", "images.float() / 256 if"),
    ("geometry", "cos = torch.tensor([1.0, 0.0, -1.0, 0.0])", "cos = torch.tensor([1.0, 0.0, 1.0, 0.0])"),
    ("geometry", "(1 - recipe.crop_scale) * torch.rand(batch)", "(1 - recipe.crop_scale) * torch.rand(1)"),
    ("recolour", "images >= 0.5", "images >= 0.25"),
    ("adjust_hue", "sector + 6 * shift", "sector + 3 * shift"),
    ("blur", "0.5 * (steps", "1.0 * (steps"),
    ("__call__", "torch.Generator().manual_seed(self.seed * 100_003 + epoch)\n        order",
     "torch.Generator().manual_seed(self.seed * 100_003)\n        order"),
    ("__call__", "itertools.islice(loader, start, None)", "itertools.islice(loader, 0, None)"),
    ("restore_random", "np.random.set_state(states[\"numpy\"])", "pass"),
    ("_read", "if archive.testzip() is not None", "if archive.testzip() is None and False"),
    ("_read", "if here.get(name) != expected", "if False"),
    ("refining", 'and device.type != "cpu"', ""),
    ("_refine", "segments.vote(labels, predicted)", "segments.vote(labels, predicted * 0)"),
    ("extract", "backbone.eval()", "backbone.train()"),
    ("colour_statistics", "pixels.std(dim=2)", "pixels.var(dim=2)"),
    ("nearest_class", "min(neighbours, len(bank))", "1"),
    ("_finish", "correct.argmax()", "correct.argmin()"),
    ("lovasz", "truth.sum() - truth.cumsum(dim=0)", "truth.sum() - truth.cumsum(dim=0) + 1"),
    ("stage_epochs", "(epochs + 1) // 2", "epochs // 2"),
    ("turned_scores", "rot90(-turns", "rot90(turns"),
    ("summary", "np.nanargmax(scores)", "np.nanargmin(scores)"),
    ("prepare", 'mode="nearest"', 'mode="bilinear"'),
    ("probe_of", "rest = pool.without(held_out)", "rest = pool"),
    ("make_optimizer", "p.ndim <= 1], \"weight_decay\": 0.0", "p.ndim <= 1], \"weight_decay\": settings.weight_decay"),
    ("rate", "settings.lr * progress / warm", "settings.lr"),
    ("without_fc", 'startswith("fc.")', 'startswith("layer4.")'),
    # models
    ("follow", "lerp_(value, 1 - decay)", "lerp_(value, decay)"),
    ("forward", "self.network if self.training else self.average", "self.average if self.training else self.network"),
    ("loss", "target.roll(len(images), dims=0)", "target"),
    ("loss", "projection.detach()", "projection"),
    ("decay", "math.cos(math.pi * share) + 1", "math.cos(math.pi * share) - 1"),
    ("train", "self.backbone.eval()", "pass"),
    ("standardise_by", "0.1 * deviation.mean()", "10 * deviation.mean()"),
    ("features", "network.relu(network.bn1(network.conv1(images)))", "network.bn1(network.conv1(images))"),
    ("_product", "images[:, :, ::down, ::across]", "images[:, :, ::down, ::down]"),
    ("_in_parts", "out.permute(0, 3, 1, 4, 2, 5)", "out.permute(0, 3, 2, 4, 1, 5)"),
    ("mask_boxes", "last = hit.shape[1] - 1 - ", "last = hit.shape[1] - "),
    ("partition", "np.argsort(-masks", "np.argsort(masks"),
    ("fetch", "files.digest(path) == wanted.sha256", "True"),
    ("crops", "w - overlap", "w"),
    ("stability_scores", "logits > -offset", "logits > 0"),
    ("near_inner_edge", "& ~near_whole", "| near_whole"),
    ("without_small_regions", "islands, sizes = _regions(mask)", "islands, sizes = _regions(~mask)"),
    ("scores", "out[..., :height, :width]", "out[..., -height:, -width:]"),
    ("_fcn32s", "identity.expand_as", "0 * identity.expand_as"),
    ("load_sam", "layer_norm_eps = 1e-5", "layer_norm_eps = 1e-3"),
    # measures
    ("iou", "+ matrix.sum(axis=1) - hits", "+ matrix.sum(axis=1)"),
    ("pixel_accuracy", "matrix[:UNKNOWN]", "matrix"),
    ("ceiling", "constant_values=UNKNOWN", "constant_values=0"),
    ("asa", "truth != UNKNOWN", "truth == truth"),
    ("boundary_recall_precision", "return _share(near_segments, true_borders), _share(near_truth, counted)",
     "return _share(near_truth, counted), _share(near_segments, true_borders)"),
    ("purity", "labels[:, None]", "labels[:, None] * 0"),
    # data and store
    ("decode", "| (bits == 4)", ""),
    ("square", "(width - size) // 2", "0"),
    ("without", "not in left", "in left"),
    ("leaves", "if os.path.basename(name) != name or", "if"),
    ("office", 'margin = PATCH if split == "val" else 0', "margin = 0"),
    ("whole_number", "-(2**63) <= number", "0 <= number"),
    ("_clear", "(folder / DONE).unlink()", "pass"),
    ("_damage", 'problems.append(f"{name} is missing")', "pass"),
]  # fmt: skip


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
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
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
