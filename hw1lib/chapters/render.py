"""From what the notebooks kept to the report: one template, for code hosts, for the browser and for paper.

The template only includes; nothing is computed here. pandoc turns Markdown into HTML and typst, typst sets
the PDF; both come with Python packages and work offline.
"""

import json
import re
import shutil
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import jinja2
import pypandoc
import typst

from hw1lib import files, paths
from hw1lib.chapters.notes import MARKDOWN, note, read_text
from hw1lib.chapters.words import escape
from hw1lib.errors import UserError, did_you_mean

ABOUT = {"title": "HW1", "name": "Student name", "id": "R00000000"}
ABOUT_HINT = 'It holds three lines: title = "…", name = "…" and id = "…".'


class Kept:
    """What the notebooks kept in a build folder, by name; a template calls it. Figures are numbered as they come."""

    def __init__(self, out):
        self.out = Path(out)
        self.figures = 0

    def __call__(self, name):
        """The Markdown of a kept figure, table or text.

        Raises:
            UserError: no notebook kept it.
        """
        try:
            about = files.read_json(self.out / "kept" / f"{name}.json")
            if about["kind"] == "figure":
                self.figures += 1
                (self.out / "figures" / f"{name}.png").stat()
                caption = " ".join(about["caption"].split())
                return f"![Figure {self.figures}. {caption}](figures/{name}.png)"
            return (self.out / "text" / f"{name}.md").read_text(encoding="utf-8").strip("\n")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The report's template {paths.TEMPLATE} includes {name!r}, but no notebook kept it in {self.out}. "
                f'Keep it in a cell, book.keep("{name}", …), or take it out of the template; if its files were '
                "deleted, run make report again."
            ) from error


def write(out, facts):
    """Writes report.md, report.html and report.pdf into a build folder.

    Args:
        out: the build folder, with what the notebooks kept.
        facts: plain values for the template, such as profile and run.
    """
    out, folder, given = Path(out), paths.TEMPLATE.parent, about()
    title = f"{given['title']} – {given['name']}"
    facts = facts | {"about": {key: escape(value) for key, value in given.items()}}

    files.write_text(out / "report.md", markdown(out, facts, "markdown"))

    options = {"format": MARKDOWN, "verify_format": False}
    wide = "--columns=10000"  # else pandoc gives long tables columns of equal width
    page = ["--standalone", "--embed-resources", "--section-divs", "--metadata=lang:en"]
    page += [f"--metadata=pagetitle:{title}", f"--resource-path={out}", f"--css={folder / 'style.css'}"]
    html = pypandoc.convert_text(markdown(out, facts, "html"), "html5", **options, extra_args=[wide, *page])
    files.write_text(out / "report.html", html)

    body = pypandoc.convert_text(markdown(out, facts, "pdf"), "typst", **options, extra_args=[wide])
    body = re.sub(r'"figures/([\w-]+)\.png"', r'"figures/\1.pdf"', body)  # sharp at any size
    head = (folder / "page.typ").read_text(encoding="utf-8")
    body = f"{head}\n#set document(title: {json.dumps(title, ensure_ascii=False)})\n{body}"
    with files.replacing(out / "report.pdf") as temporary:
        temporary.write_bytes(_typeset(body, out / "figures"))


def markdown(out, facts, target):
    """The filled template; target is markdown, html or pdf: only appendices differ between them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.TEMPLATE.parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    template = environment.get_template(paths.TEMPLATE.name)
    return re.sub(r"\n{3,}", "\n\n", template.render(kept=Kept(out), note=note, target=target, **facts))


def _typeset(source, figures, **options):
    """Compiles typst's own text; it finds the figures in figures/."""
    with tempfile.TemporaryDirectory(dir=figures.parent) as folder:
        shutil.copytree(figures, Path(folder) / "figures", ignore=shutil.ignore_patterns("export", "*.png"))
        path = Path(folder) / "report.typ"
        path.write_text(source, encoding="utf-8")
        foreign = max(source) >= "\u2e80"  # Chinese and the like, which typst's own fonts lack
        return typst.compile(str(path), ignore_system_fonts=not foreign, timestamp=0, **options)


def about():
    """Title, name and student ID, a dict, from report/about.toml; without that file, stand-ins.

    Raises:
        UserError: the file cannot be read, or lacks one of them.
    """
    if not paths.ABOUT.exists():
        return dict(ABOUT)
    try:
        given = tomllib.loads(read_text(paths.ABOUT))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{paths.ABOUT} is not valid TOML: {error}. {ABOUT_HINT}") from error
    if absent := [key for key in ABOUT if key not in given]:
        raise UserError(f"{paths.ABOUT} lacks {', '.join(absent)}. {ABOUT_HINT}")
    for key in ABOUT:
        if not isinstance(given[key], str | int) or isinstance(given[key], bool):
            raise UserError(f"{paths.ABOUT}: {key} is {given[key]!r}, which is no text. {ABOUT_HINT}")
    return {key: " ".join(str(given[key]).split()) for key in ABOUT}


def check():
    """Look through the files that only the report needs, before anything is trained.

    Returns:
        Sentences about what keeps the report from being written, and about what is not used.
    """
    problems, warnings = [], []
    parts = (paths.TEMPLATE, paths.TEMPLATE.with_name("style.css"), paths.TEMPLATE.with_name("page.typ"))
    problems += [f"{part} is missing. Restore it: git checkout {part}." for part in parts if not part.is_file()]
    for read in (about, *(partial(read_text, path) for path in sorted(paths.NOTES.glob("[!.]*.md")))):
        try:
            read()
        except UserError as error:
            problems.append(str(error))
    if not paths.ABOUT.exists():
        warnings.append(f"{paths.ABOUT} is missing, so the report has no name on it. {ABOUT_HINT}")
    elif not problems:
        unknown = [key for key in tomllib.loads(read_text(paths.ABOUT)) if key not in ABOUT]
        warnings += [f"{paths.ABOUT}: {key} is not used.{did_you_mean(key, ABOUT)}" for key in unknown]
    return problems, warnings


def publish(out, name):
    """Copies report.md, its figures and its numbers to report/<name>/, for a code host; returns that folder."""
    source, target = Path(out), paths.REPORT / name
    if not (source / "report.md").is_file():
        raise UserError(f"There is no report in {source}. Make it first: make report.")
    part = target.with_name(f".{target.name}.part")  # the old one stays until the new is whole
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source / "figures", part / "figures", ignore=shutil.ignore_patterns("export", "*.pdf", ".*"))
    shutil.copytree(source / "tables", part / "tables")
    for file in ("metrics.json", "run.json", "timings.csv"):
        shutil.copy(source / file, part / file)
    shutil.copy(source / "report.md", part / "README.md")
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def export(out, names, formats, dpi, into):
    """Writes kept figures in other formats, from their PDFs.

    Args:
        out: build folder.
        names: of kept figures; empty for all of them.
        formats: of png, pdf, svg.
        dpi: of PNG.
        into: folder.

    Returns:
        The written paths.
    """
    figures = Path(out) / "figures"
    known = sorted(path.stem for path in figures.glob("[!.]*.pdf"))
    unknown = [name for name in names if name not in known]
    if unknown or not known:
        wanted = unknown[0] if unknown else "at all"
        there = ", ".join(known) or "none"
        raise UserError(f"There is no figure {wanted!r} in {figures}; there are: {there}. make report draws them.")
    written = []
    for name in names or known:
        page = f'#set page(width: auto, height: auto, margin: 0pt)\n#image("figures/{name}.pdf")'
        for kind in formats:
            path = into / f"{name}.{kind}"
            with files.replacing(path) as temporary:
                if kind == "pdf":
                    shutil.copy(figures / f"{name}.pdf", temporary)
                else:
                    temporary.write_bytes(_typeset(page, figures, format=kind, ppi=float(dpi)))
            written.append(path)
    return written
