"""The command line, `python -m hw1lib COMMAND`: one function per command, whose docstring is its help.

A command imports what it needs when it runs, so that --help is quick.
"""

import functools
import sys
import textwrap
from pathlib import Path

import click

from hw1lib import inputs, paths, profiles, terminal, variants
from hw1lib.errors import UserError, visible
from hw1lib.terminal import PATH, command, group, print_paragraphs

VAL = "data/earth/p1_data/office/val"  # in examples
TILES = "data/earth/p2_data/validation"
BUILD = "report/build/demo"


def main(argv=None):
    """Run one command; return its exit code, as listed in terminal.run."""
    return terminal.run(commands, argv)


PREDICT = f"predict segmentation {TILES} {BUILD}/masks"
EVALUATE = f"evaluate segmentation {BUILD}/masks {TILES}"
predict = group("predict", "Predict labels or masks of new images with a trained model.", PREDICT)
evaluate = group("evaluate", "Score predictions as the course does.", EVALUATE)
groups = [inputs.data, inputs.weights, predict, evaluate]
commands = group("hw1lib", "Run the HW1 workbook and build its report.", "report --profile smoke", groups)

PROFILES = [f"{name}: {profiles.get(name).about}" for name in profiles.NAMES]
PROFILE_HELP = f"profile (default: demo), or the path of a TOML file; {'; '.join(PROFILES)}"
SEEDS_HELP = "run pre-training, fine-tuning, … with N seeds (default: 1)"
SET_HELP = "change settings, such as pretrain.epochs=20 finetune.lr=3e-4"
SETTINGS = [
    click.Option(["--profile"], default="demo", metavar="P", help=PROFILE_HELP),
    inputs.DATA_ROOT,
    click.Option(["--out"], default="", metavar="O", help="build folder (default: report/build/<profile>)"),
    click.Option(["--seeds"], type=int, metavar="N", help=SEEDS_HELP),
    click.Option(["--device"], metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or xpu (default: auto)"),
    click.Option(["--set", "settings"], multiple=True, metavar="NAME=VALUE", help=SET_HELP),
]


# --- the report and its steps


@command(commands, "report --profile smoke --set pretrain.epochs=3 finetune.lr=3e-4", SETTINGS)
@click.option("--only", type=click.Choice(["problem1", "problem2"]), help="run only this problem")
@click.option("--cluster", metavar="WHERE", help="run steps on workers: local:N, tcp://host:8786 or my-cluster.yaml")
def report(cluster, **options):
    """Run every step that is not done, then build the report."""
    sys.modules.setdefault("rfc3987_syntax", None)  # saves 3 s: jsonschema would load URL checks that no notebook needs
    from hw1lib.report import notebooks

    run_steps = None
    if cluster:
        from hw1lib.cluster import run_steps as workers

        run_steps = functools.partial(workers.run, where=cluster)
    book = _workbook(**options)
    print_paragraphs(_warnings(book))
    notebooks.run(book, _parameters(**options), run_steps)


@command(commands, "plan --profile smoke --seeds 3", SETTINGS)
@click.option("--workers", type=click.IntRange(1, 10_000), metavar="N", help="also simulate 1, 2, 4, 8 and N workers")
def plan(workers, **options):
    """List the steps: which are done, to resume or to run, why, and how long they take."""
    book = _workbook(**options)
    warnings = _warnings(book, writes=False)
    print(f"{'step':<32}{'state':<12}{'seconds':>9}   key")
    total = 0.0
    for label, steps, name in book.planned():
        status, seconds = steps.status(name), steps.expected(name)
        estimate = "–" if seconds is None else f"{'' if status == 'done' else '~'}{seconds:.0f}"
        print(f"{label:<32}{status:<12}{estimate:>9}   {steps.key(name)}")
        if why := steps.why(name):
            print(textwrap.fill(why, 80, initial_indent="  ", subsequent_indent="  "))
            total += seconds or 0
    if total:
        print(f"\n~ estimated from earlier runs with other settings: {total:.0f} s in all (without those marked –)")
    if workers:
        from hw1lib.cluster import schedule

        print("", *schedule.summary(book, workers), sep="\n")
    print_paragraphs(warnings)


@command(commands, "run finetune-C --profile smoke", SETTINGS)
@click.argument("step", help="such as pretrain or finetune-C; `plan` lists them")
def run(step, **options):
    """Run one step, and those that it builds on, without a notebook."""
    from hw1lib.loops import distributed

    with distributed.process_group():
        book, is_rank0 = _workbook(**options), distributed.rank() == 0
        print_paragraphs(book.warnings if is_rank0 else ())
        result = book.result(step)
    if is_rank0:
        print(result.folder)


@command(commands, "verify --profile smoke", SETTINGS)
def verify(**options):
    """Check every result of a build folder against its hash."""
    book = _workbook(**options)
    if problems := book.steps.store.verify():
        raise UserError(
            f"{book.out} has changed since it was written: {'; '.join(problems)}. Run `make report` to "
            "repeat the steps of this report, and delete the folders of the others."
        )
    print(f"{book.out}: all results are unchanged.")


@command(commands, "compare smoke demo")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", help="build folders, or profiles with a report")
def compare(runs):
    """Compare the scores of several reports, and list their other differences."""
    from hw1lib import compare_runs

    tables, sentences = compare_runs.compare(runs)
    for title, table in tables.items():
        print(f"{title}\n{table.to_string(na_rep='–', float_format='%.4f')}\n")
    print(*sentences, sep="\n")


@command(commands, "publish --profile demo", SETTINGS)
def publish(**options):
    """Copy a report as Markdown and PNG into report/<profile>."""
    from hw1lib.report import render

    print(render.publish(_workbook(**options).out, profiles.path(options["profile"]).stem))


@command(commands, "figures --profile smoke --format svg,pdf stages tsne", SETTINGS)
@click.argument("names", nargs=-1, metavar="[NAME...]", help="default: all figures")
@click.option("--format", "formats", default="pdf", help="one or more of pdf,svg,png (default: pdf)")
@click.option("--dpi", type=click.IntRange(10, 2400), default=300, help="resolution of PNG files (default: 300)")
@click.option("--into", type=PATH, metavar="DIR", help="default: figures/export in the build folder")
def figures(names, formats, dpi, into, **options):
    """Export figures of a report as PDF, SVG or PNG."""
    from hw1lib.report import render

    formats = [kind.strip().lower() for kind in formats.split(",")]
    parameters = _parameters(**options)
    out = Path(parameters["out"] or paths.BUILD / profiles.path(options["profile"]).stem)
    written, outdated = render.export(out, names, formats, dpi, into or out / "figures" / "export")
    print(*written, sep="\n")
    if outdated:
        print(f"Older than the report: {', '.join(outdated)}. `make report` draws them again.", file=sys.stderr)


def _warnings(book, writes=True):
    """Return warnings about what a report will ignore or replace; raise a UserError that lists what prevents it."""
    from hw1lib.report import render
    from hw1lib.steps import requirements

    problems, warnings = render.check()
    requirements.refuse(((steps, name) for _, steps, name in book.planned()), problems, writes)
    return [*warnings, *book.warnings, *requirements.unused(book.data)]


def _parameters(profile, data_root, out, settings, **options):
    """Return the parameters of a notebook (dict of profile, data_root, out, settings), after checking the settings."""
    pairs = [pair.partition("=") for pair in settings]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set {name}: write it as NAME=VALUE, such as pretrain.epochs=20.")
    settings = {name: value for name, _, value in pairs}
    settings |= {name: value for name, value in options.items() if value is not None}
    profiles.get(profile, settings)  # raises a UserError for wrong names or values
    profile = profile if profile in profiles.NAMES else str(profiles.path(profile))
    root, out = (str(Path(path).expanduser().resolve()) if path else "" for path in (data_root, out))
    return {"profile": profile, "data_root": root, "out": out, "settings": settings}


def _workbook(**options):
    parameters = _parameters(**options)  # reports wrong settings before the slow import
    from hw1lib.workbook import Workbook

    return Workbook(**parameters)


# --- predictions and scores


@command(predict, f"predict classification {VAL}.csv {VAL} {BUILD}/predicted.csv", SETTINGS)
@click.argument("csv", type=PATH, help="file with columns id and filename")
@click.argument("image_dir", type=PATH, help="folder of these images")
@click.argument("out_csv", type=PATH, help="file to write: id, filename, label")
@click.option("--model", default="C", metavar="M", help=f"setting {', '.join(variants.SETTINGS)} (default: C)")
def predict_classification(csv, image_dir, out_csv, model, **options):
    """Predict the labels of the images that a CSV lists."""
    from hw1lib import predict

    count, problems = predict.classification(_workbook(**options), csv, image_dir, out_csv, model)
    print(f"{out_csv}: labels of {count:,} rows")
    return _print_problems(problems)


@command(predict, PREDICT, SETTINGS)
@click.argument("image_dir", type=PATH, help="folder of images; if some are NNNN_sat.jpg, only these")
@click.argument("out_dir", type=PATH, help="folder for NNNN_mask.png in the course's colours")
@click.option("--model", metavar="M", help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)")
@click.option("--tta", is_flag=True, help="average over eight flips and rotations of each image")
def predict_segmentation(image_dir, out_dir, model, tta, **options):
    """Predict a land-cover mask for each image of a folder."""
    from hw1lib import predict

    count, problems = predict.segmentation(_workbook(**options), image_dir, out_dir, model, tta)
    print(f"{out_dir}: masks of {count:,} images")
    return _print_problems(problems)


@command(evaluate, f"evaluate classification {BUILD}/predicted.csv {VAL}.csv")
@click.argument("pred_csv", type=PATH, help="predictions, with columns filename and label")
@click.argument("true_csv", type=PATH, help="true labels, with the same columns")
def evaluate_classification(pred_csv, true_csv):
    """Score a CSV of labels by accuracy."""
    from hw1lib import evaluate

    score, problems = evaluate.score_classification(pred_csv, true_csv)
    print(f"accuracy {score['accuracy']:.4f}  ({score['coverage']})")
    return _print_problems(problems)


@command(evaluate, EVALUATE)
@click.argument("pred_dir", type=PATH, help="folder of predicted NNNN_mask.png")
@click.argument("true_dir", type=PATH, help="folder of true NNNN_mask.png")
def evaluate_segmentation(pred_dir, true_dir):
    """Score a folder of masks by mIoU."""
    from hw1lib import evaluate

    score, problems = evaluate.score_segmentation(pred_dir, true_dir)
    for name, value in score["iou"].items():
        print(f"  {name:<14}{'does not occur' if value is None else f'{value:.4f}'}")
    print(f"mIoU            {score['miou']:.4f}  ({score['coverage']})")
    print(f"pixel accuracy  {score['pixel_accuracy']:.4f}")
    return _print_problems(problems)


def _print_problems(problems):
    """Print which files were left out or counted as wrong, and why; return the exit code."""
    if problems:
        sys.stdout.flush()
        print(f"\nhw1lib: {len(problems):,} left out or counted as wrong:", file=sys.stderr)
    for name, reason in problems:
        print(visible(f"  {name}: {reason}"), file=sys.stderr)
    return 1 if problems else 0
