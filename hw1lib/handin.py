"""Builds the report's files from a workbook's stored results, and copies of them for others."""

import contextlib
import dataclasses
import datetime
import platform
import shutil
import subprocess
import time
import tomllib
from importlib.metadata import version

import torch

from hw1lib import answers, files, gallery, paths, prose
from hw1lib.errors import UserError
from hw1lib.results import figures, notes, report, tables


def write(book, started, ran=True):
    """Writes tables, metrics.json, run.json, timings.csv and the three forms of the report.

    Args:
        started: when the call began, in seconds since 1970.
        ran: whether it ran a step; else run.json keeps the seconds_total of the call that did.
    """
    out, has = book.out, book.has
    for problem, names in answers.SAVED.items():
        for name in names if has[problem] else ():
            tables.write_csv(out / "tables" / f"{name}.csv", answers.TABLES[name](book))
    done = {label: steps.done(name) for label, steps, name in book.planned()}
    files.write_json(out / "metrics.json", _metrics(book, done))
    tables.write_csv(out / "timings.csv", answers.timings(book))
    seconds = time.time() - started
    if not ran:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it may be damaged
            seconds = files.read_json(out / "run.json")["seconds_total"]
    files.write_json(out / "run.json", _run(book, done, seconds))
    render(book)


def render(book):
    """Writes the report in its three forms; of how it ran they say what run.json says."""
    run = files.read_json(book.out / "run.json")
    with figures.style():
        drawn = figures.timing(run["seconds"])
        for ending in ("png", "pdf"):
            figures.save(drawn, book.out / "figures" / f"timing-steps.{ending}")
    report.write(book.out, paths.TEMPLATE, _book(book, run))


def _metrics(book, done):
    """Every number of the report but times: free of host, date and version."""
    return {
        "profile": book.profile.name,
        "settings": dataclasses.asdict(book.profile) | {"device": None},
        "steps": {name: {"key": r.key, **r.metrics} for name, r in done.items()},
    }


def _run(book, done, seconds):
    """Where and how this report came about."""
    names = ("torch", "torchvision", "byol-pytorch", "scikit-learn", "matplotlib", "papermill")
    return {
        "profile": book.profile.name,
        "data_root": str(_from_here(book.root)),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds_total": round(seconds, 1),
        "seconds": {name: result.run["seconds"] for name, result in done.items()},
        "resumed": [name for name, result in done.items() if result.run.get("resumed")],
        "device": str(book.device),
        "device_name": _device_name(book.device),
        "threads": torch.get_num_threads(),
        "host": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in names},
        "commit": _commit(),
    }


def _from_here(path):
    """A path inside the project as seen from its root; any other as it is."""
    return path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path


def _device_name(device):
    if device.type == "cpu":
        try:
            lines = open("/proc/cpuinfo", encoding="utf-8").read().splitlines()
        except OSError:
            return platform.processor() or "CPU"
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores" if names else "CPU"
    return torch.get_device_module(device).get_device_name(device)


def _commit():
    """The commit that the code is at, with + where files differ from it; empty outside git."""
    def git(*words):
        done = subprocess.run(
            ["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + "+" if commit and git("status", "--porcelain") else commit
    except FileNotFoundError:
        return ""


def _book(book, run):
    def fenced(name):
        return f"```\n{prose.CODE[name](book)}\n```"

    facts = {
        "about": about(),
        "profile": book.profile,
        "run": run | {name: tables.escape(run[name]) for name in ("device_name", "host", "commit")},
        "is_sample": book.is_sample,
        "networks": prose.networks(),
    }
    return report.Book(
        table=lambda name: answers.printed(book, name, answers.TABLES[name](book)),
        say=lambda name: prose.SENTENCES[name](book),
        code=fenced,
        note=_note,
        figure_folder=book.out / "figures",
        has=book.has,
        facts=facts,
    )


def about():
    """Name, student ID and title, from report/about.toml."""
    try:
        given = tomllib.loads(paths.ABOUT.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{paths.ABOUT} cannot be read: {error}. It needs title, name and id.") \
            from error
    missing = {"title", "name", "id"} - set(given)
    if missing:
        raise UserError(f"{paths.ABOUT} lacks {', '.join(sorted(missing))}.")
    return {key: tables.escape(value) for key, value in given.items()}


def _note(question):
    """The author's own paragraphs on a question, from report/notes/<question>.md, marked so."""
    path = paths.NOTES / f"{question}.md"
    if not path.is_file():
        return ""
    try:
        text = notes.tame(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Save it as UTF-8 text.") from error
    quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    return f"> **The author's note.**\n>\n{quoted}"


def publish(book):
    """Copies report.md, its figures and its numbers to report/<profile>/, for a code host.

    Returns:
        That folder.
    """
    source, target = book.out, paths.REPORT / book.profile.name
    if not (source / "report.md").is_file():
        raise UserError(f"There is no report in {source}. Make it first: make report.")
    part = target.with_name(f".{target.name}.part")  # the old one stays until the new is whole
    shutil.rmtree(part, ignore_errors=True)
    (part / "figures").mkdir(parents=True)
    shutil.copytree(source / "tables", part / "tables")
    for name in ("metrics.json", "run.json", "timings.csv"):
        shutil.copy(source / name, part / name)
    shutil.copy(source / "report.md", part / "README.md")
    for figure in sorted((source / "figures").glob("*.png")):
        shutil.copy(figure, part / "figures" / figure.name)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def export(book, names, formats, dpi, into):
    """Writes figures in other formats.

    Args:
        names: of gallery.FIGURES; empty for all that the data allows.
        formats: of png, pdf, svg.
        dpi: of PNG.
        into: folder.

    Returns:
        The written paths.
    """
    has = book.has
    known = (gallery.PROBLEM1 if has[1] else {}) | (gallery.PROBLEM2 if has[2] else {})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no figure {unknown[0]!r}; there are: {', '.join(known)}.")
    written = []
    for name in names or known:
        with figures.style():
            drawn = known[name](book)
            for kind in formats:
                path = into / f"{name}.{kind}"
                figures.save(drawn, path, dpi)
                written.append(path)
    return written
