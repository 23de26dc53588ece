"""From what the notebooks kept to the report: one template, for code hosts, for the browser and for paper.

The template only includes; nothing is computed here. pandoc turns Markdown into HTML and typst, typst sets
the PDF; both come with Python packages and work offline.
"""

import contextlib
import hashlib
import io
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
from PIL import Image, PngImagePlugin

from hw1lib import files, kept, paths
from hw1lib.chapters import style
from hw1lib.chapters.phrases import escape
from hw1lib.errors import UserError, did_you_mean
from hw1lib.report.notes import MARKDOWN, note, read_text, unused

ABOUT = {"title": "HW1", "name": "Student name", "id": "R00000000"}
ABOUT_HINT = 'It holds three lines: title = "…", name = "…" and id = "…".'

MANIFEST = "manifest.json"  # of a build folder: the SHA-256 of each file that belongs to its report
NUMBERS = ("metrics.json", "run.json", "timings.csv")
PAGE, FIGURE = "page.png", "finetune_accuracy"  # of a published report: a picture of the page with this figure
DPI = (10, 2400)


class Kept:
    """What notebooks kept for a report, by name; a template calls it. Figures are numbered as they come.

    Args:
        out: build folder.
        names: of what belongs to this report; other things may lie there from earlier ones.
    """

    def __init__(self, out, names):
        self.out = Path(out)
        self.entries = {name: kept.entry(out, name) for name in names}
        self.figures = 0
        for name, entry in self.entries.items():
            if not entry or kept.changed(out, entry["files"]):
                raise UserError(f"{name!r} in {out} is not as its notebook kept it. Run make report again.")

    def __call__(self, name):
        """The Markdown of a kept figure, table or text.

        Raises:
            UserError: no notebook of this report kept it.
        """
        if name not in self.entries:
            raise UserError(
                f"The report's template {paths.TEMPLATE} includes {name!r}, but no notebook kept it in {self.out}. "
                f'Keep it in a cell, book.keep("{name}", …), or take it out of the template.'
            )
        entry = self.entries[name]
        if entry["kind"] == "figure":
            self.figures += 1
            return f"![Figure {self.figures}. {' '.join(entry['caption'].split())}](figures/{name}.png)"
        return (self.out / "text" / f"{name}.md").read_text(encoding="utf-8").strip("\n")


def write(out, names, facts):
    """Write report.md, report.html and report.pdf into a build folder, and a manifest of what belongs to them.

    Args:
        out: the build folder, with what the notebooks kept.
        names: of what they kept for this report.
        facts: plain values for the template, such as profile and run.
    """
    out, folder, given = Path(out), paths.TEMPLATE.parent, about()
    title = f"{given['title']} – {given['name']}"
    questions = {}  # that the template has a place for, and the author's notes on them
    facts = facts | {"about": {key: escape(value) for key, value in given.items()}}
    facts["note"] = lambda question: questions.setdefault(question, note(question))

    files.write_text(out / "report.md", markdown(out, names, facts, "markdown"))
    for sentence in unused(questions):
        print(sentence)

    options = {"format": MARKDOWN, "verify_format": False}
    wide = "--columns=10000"  # else pandoc gives long tables columns of equal width
    page = ["--standalone", "--embed-resources", "--section-divs", "--metadata=lang:en"]
    page += [f"--metadata=pagetitle:{title}", f"--resource-path={out}", f"--css={folder / 'style.css'}"]
    html = pypandoc.convert_text(markdown(out, names, facts, "html"), "html5", **options, extra_args=[wide, *page])
    files.write_text(out / "report.html", html)

    body = pypandoc.convert_text(markdown(out, names, facts, "pdf"), "typst", **options, extra_args=[wide])
    body = re.sub(r'"figures/([\w-]+)\.png"', r'"figures/\1.pdf"', body)  # sharp at any size
    body = f"{_head()}\n#set document(title: {json.dumps(title, ensure_ascii=False)})\n{body}"
    with files.replacing(out / "report.pdf") as temporary:
        temporary.write_bytes(_typeset(body, out / "figures"))

    seal(out, names)


def seal(out, names):
    """Write the manifest of a report: the SHA-256 of its text, its numbers and the files of what it includes."""
    parts = ["report.md", *NUMBERS, *(file for name in names for file in kept.entry(out, name)["files"])]
    files.write_json(out / MANIFEST, {part: files.digest(out / part) for part in sorted(parts)})


def markdown(out, names, facts, target):
    """Fill the template with facts; target is markdown, html or pdf: only appendices differ between them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.TEMPLATE.parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    try:
        template = environment.get_template(paths.TEMPLATE.name)
        text = template.render(kept=Kept(out, names), target=target, **facts)
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"The report's template {paths.TEMPLATE}{line} cannot be filled: {error.message}.") from error
    return re.sub(r"\n{3,}", "\n\n", text)


def _head():
    """The style of the report on paper, in typst's own language."""
    return (paths.TEMPLATE.parent / "page.typ").read_text(encoding="utf-8")


@contextlib.contextmanager
def _typst(source, figures, ending="pdf"):
    """Yield a file with typst's own text, beside the figures of that ending, and how it is compiled."""
    with tempfile.TemporaryDirectory(dir=figures.parent) as folder:
        unused = {"pdf", "png"} - {ending}
        shutil.copytree(figures, Path(folder) / "figures", ignore=shutil.ignore_patterns("export", f"*.{unused.pop()}"))
        path = Path(folder) / "report.typ"
        path.write_text(source, encoding="utf-8")
        foreign = max(source) >= "\u2e80"  # Chinese and the like, which typst's own fonts lack
        yield str(path), {"ignore_system_fonts": not foreign}


def _typeset(source, figures, **options):
    """Compile typst's own text; it finds the figures in figures/."""
    with _typst(source, figures) as (path, fonts):
        return typst.compile(path, timestamp=0, **fonts, **options)


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
    """Copy report.md, its figures and its numbers to report/<name>/, for a code host, with a picture of a page.

    Returns:
        That folder.

    Raises:
        UserError: there is no whole report, or a part of it was changed after it was built.
    """
    source, target = Path(out), paths.REPORT / name
    manifest = _manifest(source)
    if changed := kept.changed(source, manifest):
        raise UserError(f"{source / changed[0]} is not as the report in {source} shows it. Run make report again.")
    part = target.with_name(f".{target.name}.part")  # the old one stays until the new is whole
    shutil.rmtree(part, ignore_errors=True)
    for file in manifest:
        if not file.startswith("text/") and not file.endswith(".pdf"):
            copy = part / ("README.md" if file == "report.md" else file)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, copy)
    (part / PAGE).write_bytes(page(part))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def _manifest(out):
    """What belongs to the report in a build folder: SHA-256 by file name."""
    try:
        return files.read_json(out / MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"There is no report in {out}. Make it first: make report.") from error


def page(folder):
    """Draw a page of a published report: the one that shows FIGURE, else the first.

    Returns:
        A PNG whose text `report` is `shown(folder)`.
    """
    text = re.sub("(?s)<details>.*?</details>", "", (folder / "README.md").read_text(encoding="utf-8"))
    options = {"format": MARKDOWN, "verify_format": False, "extra_args": ["--columns=10000"]}
    body = pypandoc.convert_text(text, "typst", **options)
    pages = f'query(figure).filter(f => repr(f.body).contains("{FIGURE}.png")).map(f => f.location().page())'
    source = f"{_head()}\n{body}\n#context [#metadata({pages}) <pages>]"
    with _typst(source, folder / "figures", "png") as (path, fonts):
        pictures = typst.compile(path, timestamp=0, format="png", ppi=84.0, **fonts)
        (numbers,) = json.loads(typst.query(path, "<pages>", field="value", **fonts))
    pictures = pictures if isinstance(pictures, list) else [pictures]
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("report", shown(folder))
    with Image.open(io.BytesIO(pictures[numbers[0] - 1 if numbers else 0])) as picture, io.BytesIO() as file:
        picture.convert("RGB").quantize(128).save(file, "png", pnginfo=chunk, optimize=True)
        return file.getvalue()


def shown(folder):
    """A hash of what a published report shows: its text and its figures."""
    read = [folder / "README.md", *sorted((folder / "figures").glob("*.png"))]
    return hashlib.sha256(" ".join(map(files.digest, read)).encode()).hexdigest()


def export(out, names, formats, dpi, into):
    """Write figures of a report in other formats, from their PDFs.

    Args:
        out: build folder.
        names: of kept figures; empty for all of the report.
        formats: of png, pdf, svg.
        dpi: of PNG.
        into: folder.

    Returns:
        The written paths, and the names of those that the report does not show, or not so.
    """
    out, (low, high) = Path(out), DPI
    if not low <= dpi <= high:
        raise UserError(f"--dpi {dpi}: give a whole number from {low} to {high}.")
    if odd := [kind for kind in formats or [""] if kind not in style.METADATA]:
        raise UserError(f"--format {','.join(formats)}: {odd[0]!r} is no format; choose of pdf, svg and png.")
    manifest = _manifest(out)
    shown = [Path(file).stem for file in manifest if file.startswith("figures/") and file.endswith(".pdf")]
    kinds = {name: entry["kind"] for name, entry in kept.entries(out).items()}
    known = [name for name in kinds if kinds[name] == "figure" and (out / f"figures/{name}.pdf").is_file()]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"There is no figure {unknown[0]!r} in {out}; there are: {', '.join(known) or 'none'}.")
    written, others = [], []
    for name in names or shown:
        file = f"figures/{name}.pdf"
        if file not in manifest or kept.changed(out, {file: manifest[file]}):
            others.append(name)
        page = f'#set page(width: auto, height: auto, margin: 0pt)\n#image("{file}")'
        for kind in dict.fromkeys(formats):
            path = into / f"{name}.{kind}"
            with files.replacing(path) as temporary:
                if kind == "pdf":
                    shutil.copy(out / file, temporary)
                else:
                    temporary.write_bytes(_typeset(page, out / "figures", format=kind, ppi=float(dpi)))
            written.append(path)
    return written, others
