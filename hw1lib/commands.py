"""What each command of the command line does: a function of its parsed arguments.

What it needs is imported when it runs, so that --help is quick.
"""

import contextlib
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from hw1lib import paths, profiles
from hw1lib.errors import UserError, visible


def report(arguments):
    sys.modules.setdefault("rfc3987_syntax", None)  # else jsonschema takes 3 s to prepare checks of addresses
    from hw1lib.report import notebooks

    book = _book(arguments)
    _print_paragraphs(_warnings(book))
    notebooks.run(book, _parameters(arguments), arguments.cluster)


def plan(arguments):
    """A line a step: whether it is done, how long it took or will take, its key, and why it has to run."""
    book = _book(arguments)
    warnings = _warnings(book, writes=False)
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
        from hw1lib.chapters import style
        from hw1lib.cluster import schedule

        started = time.time()  # of the process that each step on a worker is
        subprocess.run([sys.executable, "-c", "import hw1lib.workbook"], cwd=paths.ROOT, check=True)
        start = time.time() - started
        todo = schedule.tasks(book)
        print("", *schedule.in_words(todo, arguments.workers, start), sep="\n")
        path = book.out / "figures" / "schedule.png"
        style.save(schedule.figure(schedule.begun(todo, start), arguments.workers), path)
        print(path)
    _print_paragraphs(warnings)


def _warnings(book, writes=True):
    """Sentences about what a report will not use or replace.

    Raises:
        UserError: the report cannot be made; it names everything that is missing or wrong.
    """
    from hw1lib.report import render
    from hw1lib.steps import requirements

    problems, warnings = render.check()
    requirements.refuse(((steps, name) for _, steps, name in book.planned()), problems, writes)
    return [*warnings, *book.warnings, *requirements.unused(book.data)]


def _print_paragraphs(texts):
    for text in texts:
        print("", textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False), sep="\n")


def run(arguments):
    from hw1lib.loops import distributed

    with distributed.process_group():
        book, first = _book(arguments), not distributed.rank()
        _print_paragraphs(book.warnings if first else ())
        result = book.result(arguments.step)
    if first:
        print(result.folder)


def verify(arguments):
    book = _book(arguments)
    if problems := book.steps.store.verify():
        raise UserError(
            f"{book.out} is not as it was written: {'; '.join(problems)}. make report runs those of these steps "
            "again that it shows; the folders of others can be deleted."
        )
    print(f"{book.out}: every result is as it was written.")


def compare(arguments):
    """Accuracies and mIoUs of several build folders side by side, and in what they differ."""
    from hw1lib import compare_runs

    tables, sentences = compare_runs.compare(arguments.runs)
    for title, table in tables.items():
        print(f"{title}\n{table.to_string(na_rep='–', float_format='%.4f')}\n")
    print(*sentences, sep="\n")


def data_sample(arguments):
    from hw1lib.data import earth

    print(f"The Earth sample is in {earth.build(source=arguments.source)}")


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
    from hw1lib.data import layout
    from hw1lib.data.check import report
    from hw1lib.loops import pretrain
    from hw1lib.steps import requirements

    root, profile = _data_root(arguments), profiles.get("seed")
    found = report.examine(root)
    with contextlib.suppress(UserError):  # is among the errors already
        data = layout.find(root, profile.data)
        if data.problem1:
            source = pretrain.supervised_source(profile, data.problem1)
            found["errors"] += requirements.supervised(profile, data.problem1, source)
        found["warnings"] += [*requirements.fit(profile, data)[1], *requirements.unused(data, folder=False)]
    print(json.dumps(found, indent=2) if arguments.json else report.table(found))
    return 1 if found["errors"] else 0


def data_split(arguments):
    from hw1lib.data.check import resplit

    facts = resplit.by_scene(_data_root(arguments), arguments.target)
    print(f"{arguments.target}: {facts['train']:,} training and {facts['validation']:,} validation tiles in", end=" ")
    print(f"{facts['groups']:,} groups, the largest of {facts['largest']:,}; {facts['left_out']:,} tiles left out.")
    print(f"{facts['leaking']:,} validation tiles seem to continue a training tile", end=" ")
    print(f"({facts['null']:,} by chance; {facts['leaking_before']:,} before).")
    print(f"{100 * facts['classes_moved']:.1f} % of the pixels would have to change class for the former shares.")
    print(f"A run on it is a run like any other: --data-root {str(arguments.target)!r}")


def weights_list(arguments):
    from hw1lib.models import weights

    for name, known in weights.KNOWN.items():
        print(f"{name:<11}{weights.state(known, paths.WEIGHTS):<12}{known.megabytes:>5} MB  {known.about}")
    _print_paragraphs(weights.unused(paths.WEIGHTS))
    print(f"\nThey lie in {paths.WEIGHTS}; `weights fetch NAME` gets one.")
    print("A Hugging Face folder sam-vit-base (config.json, model.safetensors) in there serves\nas well.", end=" ")
    print("torchvision gets its own weights, of profiles seed and strong, by itself.")


def weights_fetch(arguments):
    from hw1lib.models import weights

    print(weights.fetch(arguments.name, arguments.source))


def weights_check(arguments):
    from hw1lib import files
    from hw1lib.models import weights

    there = {known.file: known.sha256 for known in weights.KNOWN.values() if (paths.WEIGHTS / known.file).is_file()}
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
    print(f"{arguments.out_csv}: {_number(done, 'label')}")
    return _named(problems)


def predict_segmentation(arguments):
    from hw1lib import predict

    given = arguments.image_dir, arguments.out_dir, arguments.model, arguments.tta
    done, problems = predict.segmentation(_book(arguments), *given)
    print(f"{arguments.out_dir}: {_number(done, 'mask')}")
    return _named(problems)


def evaluate_classification(arguments):
    from hw1lib import predict

    score, problems = predict.score_classification(arguments.predicted, arguments.true)
    interval = f"95 % interval {score['ci_low']:.4f} to {score['ci_high']:.4f}"
    counts = {
        "without a prediction, wrong": score["without_prediction"],
        "of the predictions not in the truth": score["not_in_truth"],
        "without a true label, not counted": score["without_truth"],
    }
    parts = [f"{score['correct']} of {score['total']}", *(f"{n} {what}" for what, n in counts.items() if n), interval]
    print(f"accuracy {score['accuracy']:.4f}  ({'; '.join(parts)})")
    return _named(problems)


def evaluate_segmentation(arguments):
    from hw1lib import predict

    found, problems = predict.score_segmentation(arguments.predicted, arguments.true)
    for name, value in found["iou"].items():
        print(f"  {name:<14}{'does not occur' if value is None else f'{value:.4f}'}")
    print(f"mIoU            {found['miou']:.4f}  ({_scope(found)})")
    print(f"pixel accuracy  {found['pixel_accuracy']:.4f}")
    for kind in ("predicted", "true"):
        if count := found[f"inexact_{kind}"]:
            pixels = _number(count, f"{kind} pixel")
            print(f"{pixels} not exactly of a class's colour: a channel counts as 255 from 128 on.")
    return _named(problems, "not scored, or counted as wrong")


def _scope(found):
    """What a score of masks covers and what not, such as "6 tiles"."""
    wrong, left_out, others = (found[name] for name in ("wrong", "left_out", "others"))
    notes = [f"{wrong} without a usable prediction, counted as wrong"] if wrong else []
    notes += [f"{left_out} without a usable true mask, left out"] if left_out else []
    notes += [f"{_number(others, 'other image')} not scored"] if others else []
    paired, every = found["tiles"] - wrong, found["tiles"] + left_out
    tiles = _number(every, "tile") if paired == every else f"{paired} of {_number(every, 'tile')}"
    return f"{tiles}: {'; '.join(notes)}" if notes else tiles


def _number(count, noun):
    """A count with its noun, such as 1 mask or 2,000 masks."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _named(problems, what="left out"):
    """Names what was left out, and returns the exit code."""
    if problems:
        sys.stdout.flush()
        print(f"\nhw1lib: {len(problems)} {what}:", file=sys.stderr)
    for name, reason in problems:
        print(visible(f"  {name}: {reason}"), file=sys.stderr)
    return 1 if problems else 0


def publish(arguments):
    from hw1lib.report import render

    print(render.publish(_book(arguments).out, profiles.path(arguments.profile).stem))


def figures(arguments):
    from hw1lib.report import render

    formats = [kind.strip().lower() for kind in arguments.format.split(",")]
    out = Path(arguments.out).expanduser() if arguments.out else paths.BUILD / profiles.path(arguments.profile).stem
    into = arguments.into or out / "figures" / "export"
    written, others = render.export(out, arguments.names, formats, arguments.dpi, into)
    print(*written, sep="\n")
    if others:
        print(f"Not as the report shows it: {', '.join(others)}. make report draws its own again.", file=sys.stderr)


def _data_root(arguments):
    from hw1lib.data import earth

    return Path(arguments.data_root).expanduser() if arguments.data_root else earth.build(paths.EARTH)


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
    profile = arguments.profile if arguments.profile in profiles.NAMES else str(profiles.path(arguments.profile))
    root, out = (str(Path(p).expanduser().resolve()) if p else "" for p in (arguments.data_root, arguments.out))
    return {"profile": profile, "data_root": root, "out": out, "settings": settings}


def _book(arguments):
    parameters = _parameters(arguments)
    from hw1lib.workbook import Workbook

    return Workbook(**parameters)
