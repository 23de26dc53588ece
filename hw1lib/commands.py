"""What each command of the command line does; modules are imported when a command needs them."""

import json
import sys
import textwrap
from pathlib import Path

from hw1lib import profiles
from hw1lib.errors import UserError


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


def report(arguments):
    from hw1lib import pipeline

    only = {"problem1": 1, "problem2": 2}.get(arguments.only)
    pipeline.run(_request(arguments), only)


def plan(arguments):
    from hw1lib import cost, original

    request = _request(arguments)
    profile = profiles.get(request.profile, request.settings)
    if profile.needs_data and not request.data_root:
        print("No --data-root is given: the cost on the course's data, by its counts.\n")
        operations = cost.flops(profile, cost.of_course(original.numbers()))
        print(f"{'step':<30}{'PFLOP':>10}")
        for name, number in operations.items():
            print(f"{name:<30}{number / 1e15:>10.3f}")
    else:
        book = request.workbook()
        operations = cost.flops(book.profile, cost.of_data(book.data))
        _print_steps(list(book.planned()), operations)
    total = sum(operations.values())
    hours = cost.hours(total)
    hours = f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
    print(
        f"\nTraining once: {total / 1e15:.2f} PFLOP, about {hours} hours on a "
        f"GPU that\nsustains {cost.SUSTAINED / 1e12:.0f} TFLOP/s, as an RTX 4090 does."
    )


def _print_steps(planned, operations):
    """A line a step: whether it is done, what it costs, and why it has to run."""
    from hw1lib import cost

    runs = {
        label: steps.done(name).run for label, steps, name in planned
        if steps.status(name) == "done"
    }
    speed = cost.speed(operations, [
        (name, runs[label]["seconds"]) for label, _, name in planned
        if label in runs and not runs[label].get("resumed")  # else only its last call's seconds
    ])
    print(f"{'step':<30}{'state':<11}{'PFLOP':>9}{'seconds':>9}  key")
    for label, steps, name in planned:
        count = f"{operations[name] / 1e15:.3f}" if name in operations else "–"
        if label in runs:
            seconds = f"{runs[label]['seconds']:.0f}"
        else:
            seconds = f"~{operations[name] / speed:.0f}" if speed and name in operations else "–"
        print(f"{label:<30}{steps.status(name):<11}{count:>9}{seconds:>9}  {steps.key(name)}")
        if why := steps.why(name):
            print(textwrap.fill(why, 80, initial_indent="  ", subsequent_indent="  "))
    if speed and any(label not in runs and name in operations for label, _, name in planned):
        print("\n~ seconds: at the mean speed of the steps that are done here.")


def run(arguments):
    book = _request(arguments).workbook()
    book.run(arguments.step)
    print(book.result(arguments.step).folder)


def verify(arguments):
    book = _request(arguments).workbook()
    problems = book.steps.store.verify()
    if problems:
        raise UserError(
            f"{book.out} is not as it was written: {'; '.join(problems)}. make report runs those "
            "of these steps again that it shows; the folders of others can be deleted."
        )
    print(f"{book.out}: every result is as it was written.")


def data_sample(arguments):
    from hw1lib.data import sample

    print(f"The Earth sample is in {sample.build(source=arguments.source)}")


def data_info(arguments):
    from hw1lib import paths
    from hw1lib.data import layout, sample
    from hw1lib.settings import Data

    root = Path(arguments.data_root) if arguments.data_root else sample.build(paths.EARTH)
    found = layout.find(root, Data())
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


def data_check(arguments):
    from hw1lib import paths
    from hw1lib.data import check, sample

    root = Path(arguments.data_root).expanduser() if arguments.data_root else None
    found = check.examine(root or sample.build(paths.EARTH))
    print(json.dumps(found, indent=2) if arguments.json else check.table(found))
    return 1 if found["errors"] else 0


def weights_list(arguments):
    from hw1lib import paths
    from hw1lib.models import fetch

    for name, known in fetch.KNOWN.items():
        there = "there" if (paths.WEIGHTS / known.file).is_file() else "not there"
        print(f"{name:<11}{there:<11}{known.megabytes:>5} MB  {known.about}")
    print(
        f"\nThey lie in {paths.WEIGHTS}; `weights fetch NAME` gets one. A Hugging Face folder\n"
        "sam-vit-base (config.json, model.safetensors) in there serves as well. torchvision gets\n"
        "its own weights, of profiles seed and strong, by itself."
    )


def weights_fetch(arguments):
    from hw1lib.models import fetch

    print(fetch.fetch(arguments.name, arguments.source))


def weights_check(arguments):
    from hw1lib import files, paths
    from hw1lib.models import fetch

    there = [k for k in fetch.KNOWN.values() if (paths.WEIGHTS / k.file).is_file()]
    wrong = [k.file for k in there if files.digest(paths.WEIGHTS / k.file) != k.sha256]
    for known in there:
        print(f"{known.file}  {'wrong' if known.file in wrong else 'right'}")
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} in {paths.WEIGHTS} is damaged or another file: delete it and run "
            "weights fetch."
        )
    if not there:
        print(f"No weights of `weights list` lie in {paths.WEIGHTS}.")


def predict_classification(arguments):
    from hw1lib import predict

    done, problems = predict.classification(
        _request(arguments).workbook(), arguments.csv, arguments.image_dir, arguments.out_csv,
        arguments.model,
    )
    print(f"{arguments.out_csv}: {done} labels")
    return _named(problems)


def predict_segmentation(arguments):
    from hw1lib import predict

    done, problems = predict.segmentation(
        _request(arguments).workbook(), arguments.image_dir, arguments.out_dir, arguments.model,
        arguments.tta,
    )
    print(f"{arguments.out_dir}: {done} masks")
    return _named(problems)


def evaluate_classification(arguments):
    from hw1lib import evaluate

    found, problems = evaluate.classification(arguments.predicted, arguments.true)
    print(
        f"accuracy {found['accuracy']:.4f}  ({found['correct']} of {found['total']}; 95 % "
        f"interval {found['ci_low']:.4f} to {found['ci_high']:.4f})"
    )
    return _named(problems)


def evaluate_segmentation(arguments):
    from hw1lib import evaluate

    found, problems = evaluate.segmentation(arguments.predicted, arguments.true)
    for name, value in found["iou"].items():
        print(f"  {name:<14}{'does not occur' if value is None else f'{value:.4f}'}")
    print(f"mIoU            {found['miou']:.4f}  ({found['tiles']} tiles)")
    print(f"pixel accuracy  {found['pixel_accuracy']:.4f}")
    if found["stray_pixels"]:
        print(f"{found['stray_pixels']:,} predicted pixels have a colour that is no class.")
    return _named(problems)


def _named(problems):
    """Names what was left out, and returns the exit code."""
    if not problems:
        return 0
    sys.stdout.flush()
    print(f"\nhw1lib: {len(problems)} left out:", file=sys.stderr)
    for name, reason in problems:
        print(f"  {name}: {reason}", file=sys.stderr)
    return 1


def publish(arguments):
    from hw1lib import handin

    print(handin.publish(_request(arguments).workbook()))


def figures(arguments):
    from hw1lib import handin

    formats = arguments.format.split(",")
    odd = set(formats) - {"pdf", "svg", "png"}
    if odd:
        raise UserError(f"--format {odd.pop()}: choose of pdf, svg and png.")
    book = _request(arguments).workbook()
    into = arguments.into or book.out / "figures" / "export"
    for path in handin.export(book, arguments.names, formats, arguments.dpi, into):
        print(path)
