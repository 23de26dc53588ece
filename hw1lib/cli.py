"""The command line: python -m hw1lib COMMAND. Every command has --help."""

import argparse
import json
import sys
from pathlib import Path

from hw1lib import profiles
from hw1lib.errors import UserError


def main(argv=None):
    """Runs one command.

    Returns:
        0: done. 1: something that the user can mend, said in one paragraph. 2: wrong usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"\nhw1lib: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as with `| head`; nothing more can be printed
        sys.stdout = None
        return 0
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    report = _command(commands, "report", _report, "run what is not done, then build the report")
    _common(report, "demo")
    report.add_argument(
        "--only", choices=("problem1", "problem2"), help="one half of the homework alone"
    )

    plan = _command(commands, "plan", _plan, "the steps, whether they are done, what they cost")
    _common(plan, "demo")

    run = _command(commands, "run", _run, "one step without a notebook")
    run.add_argument("step", metavar="STEP", help="such as pretrain or finetune-C (see plan)")
    _common(run, "demo")

    verify = _command(commands, "verify", _verify, "re-hash every result of a build folder")
    _common(verify, "demo")

    data = _command(commands, "data", None, "the Earth sample, and what a data folder holds")
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    sample = _command(what, "sample", _data_sample, "build the Earth sample in data/earth")
    sample.add_argument(
        "--from", dest="source", type=Path, metavar="DIR",
        help="take the two wheels from this folder instead of the package index",
    )
    info = _command(what, "info", _data_info, "counts of a data folder")
    info.add_argument("--data-root", default="", metavar="D", help="default: the Earth sample")
    info.add_argument("--json", action="store_true", help="as JSON")

    weights = _command(commands, "weights", None, "optional weights, such as SAM's")
    what = weights.add_subparsers(dest="what", required=True, metavar="WHAT")
    _command(what, "list", _weights_list, "which are there, and how to get the others")

    publish = _command(
        commands, "publish", _publish, "copy a report as Markdown and PNG into report/<profile>"
    )
    _common(publish, "demo")

    figures = _command(commands, "figures", _figures, "export figures as PDF, SVG or PNG")
    figures.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    figures.add_argument("--format", default="pdf", help="pdf, svg, png; more with commas")
    figures.add_argument("--dpi", type=int, default=300, help="of PNG (default: 300)")
    figures.add_argument(
        "--into", type=Path, metavar="DIR", help="default: figures/export in the build folder"
    )
    _common(figures, "demo")
    return parser


def _command(commands, name, run, text):
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
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


def _request(arguments):
    from hw1lib.pipeline import Request

    settings = {}
    for pair in arguments.settings:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair}: write it as NAME=VALUE, such as pretrain.epochs=20.")
        settings[name] = value
    if arguments.seeds is not None:
        settings["seeds"] = arguments.seeds
    if arguments.device != "auto":
        settings["device"] = arguments.device
    profiles.get(arguments.profile, settings)  # wrong names end here, before anything starts
    root = str(Path(arguments.data_root).expanduser().resolve()) if arguments.data_root else ""
    out = str(Path(arguments.out).expanduser().resolve()) if arguments.out else ""
    return Request(arguments.profile, root, out, settings)


def _report(arguments):
    from hw1lib import pipeline

    only = {"problem1": 1, "problem2": 2}.get(arguments.only)
    pipeline.run(_request(arguments), only)


def _plan(arguments):
    from hw1lib import answers, cost

    request = _request(arguments)
    profile = profiles.get(request.profile, request.settings)
    if profile.needs_data and not request.data_root:
        print("No --data-root is given: the cost on the course's data, by its counts.\n")
        operations = cost.flops(profile, cost.of_course(answers.original()))
        print(f"{'step':<30}{'PFLOP':>10}")
        for name, number in operations.items():
            print(f"{name:<30}{number / 1e15:>10.3f}")
    else:
        book = request.workbook()
        operations = cost.flops(book.profile, cost.of_data(book.data))
        print(f"{'step':<30}{'state':<11}{'PFLOP':>9}{'seconds':>9}  key")
        for label, steps, name in book.planned():
            status = steps.status(name)
            seconds = f"{steps.done(name).run['seconds']:.0f}" if status == "done" else "–"
            count = f"{operations[name] / 1e15:.3f}" if name in operations else "–"
            print(f"{label:<30}{status:<11}{count:>9}{seconds:>9}  {steps.key(name)}")
    total = sum(operations.values())
    hours = cost.hours(total)
    hours = f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
    print(
        f"\nTraining once: {total / 1e15:.2f} PFLOP, about {hours} hours on a "
        f"GPU that\nsustains {cost.SUSTAINED / 1e12:.0f} TFLOP/s, as an RTX 4090 does."
    )


def _run(arguments):
    book = _request(arguments).workbook()
    book.run(arguments.step)
    print(book.result(arguments.step).folder)


def _verify(arguments):
    book = _request(arguments).workbook()
    problems = book.steps.store.verify()
    if problems:
        raise UserError(
            f"{book.out} is not as it was written: {'; '.join(problems)}. Delete the folders of "
            "these steps and run the report again."
        )
    print(f"{book.out}: every result is as it was written.")


def _data_sample(arguments):
    from hw1lib.data import sample

    print(f"The Earth sample is in {sample.build(source=arguments.source)}")


def _data_info(arguments):
    from hw1lib import paths
    from hw1lib.data import layout, sample

    root = Path(arguments.data_root) if arguments.data_root else sample.build(paths.EARTH)
    found = layout.find(root, profiles.Data())
    info = {"root": str(root)}
    if found.problem1:
        for name in ("pool", "train", "val"):
            split = getattr(found.problem1, name)
            info[name] = {"images": len(split), "classes": split.counts()}
    if found.problem2:
        info["tiles"] = {n: len(getattr(found.problem2, n)) for n in ("train", "validation")}
    if arguments.json:
        print(json.dumps(info, indent=2))
        return
    print(root)
    for name in ("pool", "train", "val"):
        if name in info:
            print(f"{name}: {info[name]['images']:,} images")
            for label, count in info[name]["classes"].items():
                print(f"  {label:<30}{count:>6,}")
    for name, count in info.get("tiles", {}).items():
        print(f"tiles, {name}: {count:,}")


def _weights_list(arguments):
    from hw1lib.models import weights

    found = weights.find_sam()
    print(f"SAM: {found}" if found else weights.SAM_HINT)


def _publish(arguments):
    from hw1lib import handin

    print(handin.publish(_request(arguments).workbook()))


def _figures(arguments):
    from hw1lib import handin

    formats = arguments.format.split(",")
    odd = set(formats) - {"pdf", "svg", "png"}
    if odd:
        raise UserError(f"--format {odd.pop()}: choose of pdf, svg and png.")
    book = _request(arguments).workbook()
    into = arguments.into or book.out / "figures" / "export"
    for path in handin.export(book, arguments.names, formats, arguments.dpi, into):
        print(path)
