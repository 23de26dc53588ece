"""The commands `data …` and `weights …`: each a function of its parsed arguments, whose docstring is its help text."""

import contextlib
import json
from pathlib import Path

from hw1lib import paths, profiles
from hw1lib.errors import UserError
from hw1lib.terminal import print_paragraphs


def data_sample(arguments):
    """Build the Earth sample in data/earth."""
    from hw1lib.data import earth

    print(f"The Earth sample is in {earth.build(source=arguments.source)}")


def data_info(arguments):
    """Count the images of a data folder by split and class."""
    from hw1lib.data import layout

    root = _data_root(arguments)
    data = layout.find(root, profiles.get("seed").data)
    info = {"root": str(root)}
    for name in ("pool", "train", "val") if data.problem1 else ():
        split = getattr(data.problem1, name)
        info[name] = {"images": len(split), "classes": split.counts()}
    if data.problem2:
        info["tiles"] = {name: len(getattr(data.problem2, name)) for name in ("train", "validation")}
    if arguments.json:
        print(json.dumps(info, indent=2))
        return
    print(info.pop("root"))
    for name, count in info.pop("tiles", {}).items():
        print(f"tiles, {name}: {count:,}")
    for name, split in info.items():
        print(f"{name}: {split['images']:,} images")
        for label, count in split["classes"].items():
            print(f"  {label:<30}{count:>6,}")


def data_check(arguments):
    """Read all data once and list every problem."""
    from hw1lib.data import layout
    from hw1lib.data.check import report
    from hw1lib.loops import pretrain
    from hw1lib.steps import requirements

    root, profile = _data_root(arguments), profiles.get("seed")
    findings = report.examine(root)
    with contextlib.suppress(UserError):  # already among the errors
        data = layout.find(root, profile.data)
        if data.problem1:
            source = pretrain.supervised_source(profile, data.problem1)
            findings["errors"] += requirements.supervised(profile, data.problem1, source)
        findings["warnings"] += [*requirements.fit(profile, data)[1], *requirements.unused(data, folder=False)]
    print(json.dumps(findings, indent=2) if arguments.json else report.table(findings))
    return 1 if findings["errors"] else 0


def data_split(arguments):
    """Split the satellite tiles anew, so that no scene is in both splits."""
    from hw1lib.data.check import resplit

    facts = resplit.by_scene(_data_root(arguments), arguments.target)
    print(
        f"{arguments.target}: {facts['train']:,} training and {facts['validation']:,} validation tiles in "
        f"{facts['groups']:,} groups, the largest of {facts['largest']:,} tiles; {facts['left_out']:,} left out.\n"
        f"{facts['leaking']:,} validation tiles seem to continue a training tile ({facts['leaking_before']:,} before "
        f"the split; {facts['null']:,} expected by chance).\n"
        f"The class shares differ from those before in {100 * facts['classes_moved']:.1f} % of the pixels.\n"
        f"Use it as any data folder: --data-root {str(arguments.target)!r}"
    )


def _data_root(arguments):
    from hw1lib.data import earth

    return Path(arguments.data_root).expanduser() if arguments.data_root else earth.build(paths.EARTH)


def weights_list(arguments):
    """List optional weights: which are present, and how to get the others."""
    from hw1lib.models import weights

    for name, known in weights.KNOWN.items():
        print(f"{name:<11}{weights.state(known, paths.WEIGHTS):<12}{known.megabytes:>5} MB  {known.about}")
    hints = (
        f"They are stored in {paths.WEIGHTS}. `weights fetch NAME` downloads one. A Hugging Face folder sam-vit-base "
        "(config.json, model.safetensors) there works as well. torchvision downloads the weights of the profiles seed "
        "and strong by itself."
    )
    print_paragraphs([*weights.unused(paths.WEIGHTS), hints])


def weights_fetch(arguments):
    """Download weights and check them against a known hash."""
    from hw1lib.models import weights

    print(weights.fetch(arguments.name, arguments.source))


def weights_check(arguments):
    """Check the weights that are present against their hashes."""
    from hw1lib import files
    from hw1lib.models import weights

    hashes = {known.file: known.sha256 for known in weights.KNOWN.values() if (paths.WEIGHTS / known.file).is_file()}
    wrong = [file for file, sha256 in hashes.items() if files.digest(paths.WEIGHTS / file) != sha256]
    for file in hashes:
        print(f"{file}  {'wrong' if file in wrong else 'right'}")
    if wrong:
        names = ", ".join(wrong)
        raise UserError(f"{names} in {paths.WEIGHTS} is damaged or another file: delete it and run weights fetch.")
    if not hashes:
        print(f"No weights of `weights list` are in {paths.WEIGHTS}.")
