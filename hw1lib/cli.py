"""The command line, `python -m hw1lib COMMAND`: a function for each command, then the parser of their arguments.

A command's docstring is its help text. A command imports what it needs when it runs, so that --help is quick.
"""

import functools
import sys
import textwrap
from pathlib import Path

from hw1lib import inputs, paths, profiles, terminal, variants
from hw1lib.errors import UserError, visible
from hw1lib.terminal import Parser, print_paragraphs, whole_number


def main(argv=None):
    """Run one command; return its exit code: 0 done, 1 an error that the user can fix, 2 wrong usage."""
    return terminal.run(build_parser, argv)


# --- the report and its steps


def report(arguments):
    """Run every step that is not done, then build the report."""
    sys.modules.setdefault("rfc3987_syntax", None)  # saves jsonschema 3 s for checks of URLs that no notebook needs
    from hw1lib.report import notebooks

    run_steps = _run_steps(arguments.cluster) if arguments.cluster else None
    book = _workbook(arguments)
    print_paragraphs(_warnings(book))
    notebooks.run(book, _parameters(arguments), run_steps)


def _run_steps(cluster):
    """Return a function that runs the steps of a book on workers."""
    try:
        from hw1lib.cluster import run_steps
    except ModuleNotFoundError as error:
        raise UserError(
            "Workers need Dask: .venv/bin/python -m pip install -r requirements-cluster.txt, then run the same command "
            "again. Without --cluster all steps run here, one after the other."
        ) from error
    return functools.partial(run_steps.run, where=cluster)


def plan(arguments):
    """List the steps: done, to resume or to run, why, and how long."""
    book = _workbook(arguments)
    warnings = _warnings(book, writes=False)
    print(f"{'step':<32}{'state':<12}{'seconds':>9}   key")
    total, unknown = 0.0, 0
    for label, steps, name in book.planned():
        status, seconds = steps.status(name), steps.expected(name)
        estimate = "–" if seconds is None else f"{'' if status == 'done' else '~'}{seconds:.0f}"
        print(f"{label:<32}{status:<12}{estimate:>9}   {steps.key(name)}")
        if why := steps.why(name):
            print(textwrap.fill(why, 80, initial_indent="  ", subsequent_indent="  "))
            total, unknown = total + (seconds or 0), unknown + (seconds is None)
    if total:
        print(f"\n~ estimated from earlier runs with other settings: {total:.0f} s in all", end="")
        print(f", without {unknown} steps that never ran here" if unknown else "")
    if arguments.workers:
        from hw1lib.cluster import schedule

        print("", *schedule.summary(book, arguments.workers), sep="\n")
    print_paragraphs(warnings)


def run(arguments):
    """Run one step, and those that it builds on, without a notebook."""
    from hw1lib.loops import distributed

    with distributed.process_group():
        book, is_first = _workbook(arguments), distributed.rank() == 0
        print_paragraphs(book.warnings if is_first else ())
        result = book.result(arguments.step)
    if is_first:
        print(result.folder)


def verify(arguments):
    """Check every result of a build folder against its hash."""
    book = _workbook(arguments)
    if problems := book.steps.store.verify():
        raise UserError(
            f"{book.out} was changed since it was written: {'; '.join(problems)}. Run `make report` to "
            "compute the steps of this report again, and delete the folders of the others."
        )
    print(f"{book.out}: every result is as it was written.")


def compare(arguments):
    """Compare the scores of several reports, and list what else differs."""
    from hw1lib import compare_runs

    tables, sentences = compare_runs.compare(arguments.runs)
    for title, table in tables.items():
        print(f"{title}\n{table.to_string(na_rep='–', float_format='%.4f')}\n")
    print(*sentences, sep="\n")


def publish(arguments):
    """Copy a report as Markdown and PNG into report/<profile>."""
    from hw1lib.report import render

    print(render.publish(_workbook(arguments).out, profiles.path(arguments.profile).stem))


def figures(arguments):
    """Export figures of a report as PDF, SVG or PNG."""
    from hw1lib.report import render

    formats = [kind.strip().lower() for kind in arguments.format.split(",")]
    out = Path(arguments.out).expanduser() if arguments.out else paths.BUILD / profiles.path(arguments.profile).stem
    into = arguments.into or out / "figures" / "export"
    written, outdated = render.export(out, arguments.names, formats, arguments.dpi, into)
    print(*written, sep="\n")
    if outdated:
        print(f"Not as in the report: {', '.join(outdated)}. `make report` draws them again.", file=sys.stderr)


def _warnings(book, writes=True):
    """Return warnings about what a report will ignore or replace; raise a UserError for all that prevents it."""
    from hw1lib.report import render
    from hw1lib.steps import requirements

    problems, warnings = render.check()
    requirements.refuse(((steps, name) for _, steps, name in book.planned()), problems, writes)
    return [*warnings, *book.warnings, *requirements.unused(book.data)]


def _parameters(arguments):
    """Return the parameters of a notebook (dict of profile, data_root, out, settings), after checking the settings."""
    settings = {}
    for pair in arguments.settings:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as NAME=VALUE, such as pretrain.epochs=20.")
        settings[name] = value
    options = {"seeds": arguments.seeds, "device": arguments.device, "only": getattr(arguments, "only", None)}
    settings |= {name: value for name, value in options.items() if value is not None}
    profiles.get(arguments.profile, settings)  # raises a UserError for wrong names or values
    profile = arguments.profile if arguments.profile in profiles.NAMES else str(profiles.path(arguments.profile))
    root, out = (str(Path(p).expanduser().resolve()) if p else "" for p in (arguments.data_root, arguments.out))
    return {"profile": profile, "data_root": root, "out": out, "settings": settings}


def _workbook(arguments):
    parameters = _parameters(arguments)  # wrong settings are reported before the seconds that the import takes
    from hw1lib.workbook import Workbook

    return Workbook(**parameters)


# --- predictions and scores


def predict_classification(arguments):
    """Predict the labels of the images that a CSV lists."""
    from hw1lib import predict

    book, table, out = _workbook(arguments), arguments.csv, arguments.out_csv
    count, problems = predict.classification(book, table, arguments.image_dir, out, arguments.model)
    print(f"{out}: {_counted(count, 'label')}")
    return _print_problems(problems)


def predict_segmentation(arguments):
    """Predict a land-cover mask for each image of a folder."""
    from hw1lib import predict

    book, out = _workbook(arguments), arguments.out_dir
    count, problems = predict.segmentation(book, arguments.image_dir, out, arguments.model, arguments.tta)
    print(f"{out}: {_counted(count, 'mask')}")
    return _print_problems(problems)


def evaluate_classification(arguments):
    """Score a CSV of labels by accuracy."""
    from hw1lib import evaluate

    score, problems = evaluate.score_classification(arguments.predicted, arguments.true)
    print(f"accuracy {score['accuracy']:.4f}  ({score['coverage']})")
    return _print_problems(problems)


def evaluate_segmentation(arguments):
    """Score a folder of masks by mIoU."""
    from hw1lib import evaluate

    score, problems = evaluate.score_segmentation(arguments.predicted, arguments.true)
    for name, value in score["iou"].items():
        print(f"  {name:<14}{'does not occur' if value is None else f'{value:.4f}'}")
    print(f"mIoU            {score['miou']:.4f}  ({score['coverage']})")
    print(f"pixel accuracy  {score['pixel_accuracy']:.4f}")
    for kind in ("predicted", "true"):
        if count := score[f"inexact_{kind}"]:
            pixels = _counted(count, f"{kind} pixel")
            print(f"{pixels} not exactly of a class's colour: channel values from 128 on count as 255.")
    return _print_problems(problems, "not scored, or counted as wrong")


def _counted(number, noun):
    """Return a number with its noun, such as 1 mask or 2,000 masks."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _print_problems(problems, what="left out"):
    """Print the files that were left out, with the reasons, and return the exit code."""
    if problems:
        sys.stdout.flush()
        print(f"\nhw1lib: {len(problems)} {what}:", file=sys.stderr)
    for name, reason in problems:
        print(visible(f"  {name}: {reason}"), file=sys.stderr)
    return 1 if problems else 0


# --- the parser

VAL = "data/earth/p1_data/office/val"  # in examples
TILES = "data/earth/p2_data/validation"
BUILD = "report/build/demo"


def build_parser():
    """Return the parser of all commands."""
    parser = Parser("report --profile smoke", prog="hw1lib", description="Run the HW1 workbook and build its report.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = Parser(add_help=False)
    data.add_argument(
        "--data-root", default="", metavar="D", help="folder of p1_data and p2_data (default: Earth sample)"
    )
    common = _common_options(data)

    add = _add(commands, report, "report --profile smoke --set pretrain.epochs=3 finetune.lr=3e-4", common)
    add("--only", choices=("problem1", "problem2"), help="only this half of the homework")
    add("--cluster", metavar="WHERE", help="run steps on workers: local:N, tcp://host:8786 or my-cluster.yaml")
    add = _add(commands, plan, "plan --profile smoke --seeds 3", common)
    add("--workers", type=whole_number(1, 10_000), metavar="N", help="also simulate 1, 2, 4, 8 and N workers")
    add = _add(commands, run, "run finetune-C --profile smoke", common)
    add("step", metavar="STEP", help="such as pretrain or finetune-C; `plan` lists them")
    _add(commands, verify, "verify --profile smoke", common)
    add = _add(commands, compare, "compare smoke demo")
    add("runs", nargs="+", metavar="RUN", help="build folders, or profiles whose report was built")
    _add(commands, publish, "publish --profile demo", common)
    add = _add(commands, figures, "figures --profile smoke --format svg,pdf stages tsne", common)
    add("names", nargs="*", metavar="NAME", help="default: all figures")
    add("--format", default="pdf", help="pdf, svg or png, or several separated by commas (default: pdf)")
    add("--dpi", type=whole_number(10, 2400), default=300, help="resolution of PNG files (default: 300)")
    add("--into", type=Path, metavar="DIR", help="default: figures/export in the build folder")

    group = _group(commands, "data", "Build, inspect, check and split data folders.", "data check")
    add = _add(group, inputs.data_sample, "data sample")
    add("--from", dest="source", type=Path, metavar="DIR", help="take the two wheels from this folder")
    for function, example in (inputs.data_info, "data info --data-root data/earth"), (inputs.data_check, "data check"):
        add = _add(group, function, example, data)
        add("--json", action="store_true", help="print JSON")
    add = _add(group, inputs.data_split, "data split --by scene --data-root data/earth --out data/earth-by-scene", data)
    add("--by", choices=("scene",), required=True, help="keep tiles that continue one another in the same split")
    add("--out", dest="target", type=Path, required=True, metavar="D2", help="new data folder")

    group = _group(commands, "weights", "List, download and check optional weights, such as SAM's.", "weights list")
    _add(group, inputs.weights_list, "weights list")
    _add(group, inputs.weights_check, "weights check")
    add = _add(group, inputs.weights_fetch, "weights fetch sam_vit_b")
    add("name", metavar="NAME", help="such as sam_vit_b; `weights list` shows all")
    add("--from", dest="source", type=Path, metavar="FILE", help="copy this file; HW1_WEIGHTS_MIRROR sets a mirror")

    example = f"predict segmentation {TILES} {BUILD}/masks"
    group = _group(commands, "predict", "Predict labels or masks of new images with a trained model.", example)
    add = _add(group, predict_classification, f"predict classification {VAL}.csv {VAL} {BUILD}/predicted.csv", common)
    add("csv", type=Path, metavar="CSV", help="file with columns id and filename")
    add("image_dir", type=Path, metavar="IMAGE_DIR", help="folder of these images")
    add("out_csv", type=Path, metavar="OUT_CSV", help="file to write: id, filename, label")
    add("--model", default="C", metavar="M", help=f"setting {', '.join(variants.SETTINGS)} (default: C)")
    add = _add(group, predict_segmentation, example, common)
    add("image_dir", type=Path, metavar="IMAGE_DIR", help="images of any size; if any is NNNN_sat.jpg, only such")
    add("out_dir", type=Path, metavar="OUT_DIR", help="folder for NNNN_mask.png in the course's colours")
    add("--model", metavar="M", help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)")
    add("--tta", action="store_true", help="average over eight flips and rotations of each image")

    example = f"evaluate segmentation {BUILD}/masks {TILES}"
    group = _group(commands, "evaluate", "Score predictions as the course does.", example)
    add = _add(group, evaluate_classification, f"evaluate classification {BUILD}/predicted.csv {VAL}.csv")
    add("predicted", type=Path, metavar="PRED_CSV", help="predictions, with columns filename and label")
    add("true", type=Path, metavar="TRUE_CSV", help="true labels, with the same columns")
    add = _add(group, evaluate_segmentation, example)
    add("predicted", type=Path, metavar="PRED_DIR", help="folder of predicted NNNN_mask.png")
    add("true", type=Path, metavar="TRUE_DIR", help="folder of true NNNN_mask.png")
    return parser


def _common_options(*parents):
    options = Parser(add_help=False, parents=parents)
    add, about = options.add_argument, [f"{name}: {profiles.get(name).about}" for name in profiles.NAMES]
    text = "\n".join(["settings to start from (default: demo)", *about, "or the path of a TOML file"])
    add("--profile", default="demo", metavar="P", help=text)
    add("--out", default="", metavar="O", help="build folder (default: report/build/<profile>)")
    add("--seeds", type=int, metavar="N", help="repeat pre-training and fine-tuning with N seeds (default: 1)")
    add("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or xpu (default: auto)")
    text = "replace settings, such as pretrain.epochs=20 finetune.lr=3e-4"
    add("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", help=text)
    return options


def _group(commands, name, description, example):
    """Add a command that has commands of its own, and return where to add these."""
    parser = commands.add_parser(name, help=description, description=description, example=example)
    return parser.add_subparsers(dest="what", required=True, metavar="WHAT")


def _add(commands, function, example, *parents):
    """Add the command of a function, and return the method that adds its arguments."""
    name, text = function.__name__.rpartition("_")[2], function.__doc__
    parser = commands.add_parser(name, help=text, description=text, example=example, parents=parents)
    parser.set_defaults(run=function)
    return parser.add_argument
