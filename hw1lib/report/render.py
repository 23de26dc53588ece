"""Render what the notebooks kept: one template becomes Markdown, HTML and PDF.

Nothing is computed here. pandoc converts Markdown to HTML and typst, and typst typesets the PDF. Both come with Python
packages and work offline.
"""

import io
import itertools
import json
import re
import shutil
import tomllib
from functools import partial
from pathlib import Path

import pypandoc
import typst
from PIL import Image

from hw1lib import files, kept, paths
from hw1lib.chapters.phrases import escape, listed, template
from hw1lib.errors import UserError, did_you_mean
from hw1lib.report.notes import MARKDOWN, note, read_text, unused

ABOUT = {"title": "HW1", "name": "Student name", "id": "R00000000"}
ABOUT_HINT = 'It holds three lines: title = "…", name = "…" and id = "…".'
MANIFEST = "manifest.json"  # in a build folder: the SHA-256 of each file that belongs to its report
NUMBERS = ("metrics.json", "run.json", "timings.csv")
PAGE, FIGURE = "page.png", "finetune_accuracy"  # of a published report: a picture of the page with this figure
FORMATS = ("pdf", "svg", "png")  # of exported figures


class Kept:
    """Return what notebooks kept, by name; figures are numbered in the order of the calls.

    Args:
        out: build folder.
        names: names that belong to this report; the folder may hold others from earlier reports.
    """

    def __init__(self, out, names):
        self.out = Path(out)
        self.entries = {name: kept.entry(out, name) for name in names}
        self.figures = 0
        for name, entry in self.entries.items():
            if not entry or kept.changed(out, entry["files"]):
                raise UserError(f"{name!r} in {out} was changed after its notebook kept it. Run make report again.")

    def __call__(self, name):
        """Return the Markdown of a figure, table or text.

        Raises:
            UserError: no notebook of this report kept it.
        """
        if name not in self.entries:
            raise UserError(
                f"The template {paths.TEMPLATE} includes {name!r}, but no notebook kept it in {self.out}. Keep it in a "
                f'cell, book.keep("{name}", …), or remove it from the template.'
            )
        entry = self.entries[name]
        if entry["kind"] == "figure":
            self.figures += 1
            return f"![Figure {self.figures}. {' '.join(entry['caption'].split())}](figures/{name}.png)"
        return (self.out / "text" / f"{name}.md").read_text(encoding="utf-8").strip("\n")


def write(out, names, facts):
    """Write report.md, report.html, report.pdf and the manifest into a build folder.

    Args:
        out: the build folder.
        names: names that the notebooks kept for this report.
        facts: further variables of the template, such as profile and run.
    """
    out, folder, author = Path(out), paths.TEMPLATE.parent, about()
    title = f"{author['title']} – {author['name']}"
    questions = {}  # the template's questions, and the author's notes on them
    facts = facts | {"about": {key: escape(value) for key, value in author.items()}}
    facts["note"] = lambda question: questions.setdefault(question, note(question))

    files.write_text(out / "report.md", markdown(out, names, facts, "markdown"))
    for sentence in unused(questions):
        print(sentence)

    page = ["--standalone", "--embed-resources", "--section-divs", "--metadata=lang:en"]
    page += [f"--metadata=pagetitle:{title}", f"--resource-path={out}", f"--css={folder / 'style.css'}"]
    files.write_text(out / "report.html", _pandoc(markdown(out, names, facts, "html"), "html5", *page))

    body = _pandoc(markdown(out, names, facts, "pdf"), "typst")
    body = re.sub(r'"figures/([\w-]+)\.png"', r'"figures/\1.pdf"', body)  # sharp at any size
    body = f"{_head()}\n#set document(title: {json.dumps(title, ensure_ascii=False)})\n{body}"
    with files.replacing(out / "report.pdf") as temporary:
        temporary.write_bytes(_compiler(body, out).compile(timestamp=0))

    seal(out, names)


def seal(out, names):
    """Write the manifest: the SHA-256 of report.md, the numbers and the files of everything kept."""
    hashes = kept.hashes({name: kept.entry(out, name) for name in names})
    hashes |= {name: files.digest(out / name) for name in ("report.md", *NUMBERS)}
    files.write_json(out / MANIFEST, dict(sorted(hashes.items())))


def markdown(out, names, facts, target):
    """Fill the template; `target` is markdown, html or pdf, which differ only in where modules are listed."""
    with template(paths.TEMPLATE) as report:
        text = report.render(kept=Kept(out, names), target=target, **facts)
    return re.sub(r"\n{3,}", "\n\n", text)


def _pandoc(text, target, *options):
    """Convert the report's Markdown; with shorter lines pandoc would give wide tables columns of equal width."""
    options = ["--columns=10000", *options]
    return pypandoc.convert_text(text, target, format=MARKDOWN, verify_format=False, extra_args=options)


def _head():
    """Return the style of the PDF as typst source."""
    return (paths.TEMPLATE.parent / "page.typ").read_text(encoding="utf-8")


def _compiler(source, folder):
    """Return a typst compiler for a source whose figures are in folder/figures."""
    foreign = max(source) >= "\u2e80"  # Chinese and similar scripts, which typst's own fonts lack
    return typst.Compiler(source.encode(), root=str(folder), ignore_system_fonts=not foreign)


def about():
    """Return the dict of title, name and id in report/about.toml; placeholders if the file is missing.

    Raises:
        UserError: the file cannot be read, or a value is missing or not text.
    """
    if not paths.ABOUT.exists():
        return dict(ABOUT)
    try:
        fields = tomllib.loads(read_text(paths.ABOUT))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{paths.ABOUT} is not valid TOML: {error}. {ABOUT_HINT}") from error
    for key in ABOUT:
        if type(fields.get(key)) not in (str, int):
            raise UserError(f"{paths.ABOUT}: {key} is missing or not text. {ABOUT_HINT}")
    return {key: " ".join(str(fields[key]).split()) for key in ABOUT}


def check():
    """Check the files that only the report needs, before anything is trained.

    Returns:
        Two lists of sentences: problems that prevent the report, and warnings.
    """
    problems, warnings = [], []
    styles = [paths.TEMPLATE.with_name(name) for name in ("style.css", "page.typ")]
    parts = [paths.TEMPLATE, paths.SENTENCES, *styles]
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
    """Copy a report's Markdown, figures and numbers to report/<name>/, with a picture of one page.

    Returns:
        That folder.

    Raises:
        UserError: there is no report, or one of its files was changed after it was built.
    """
    source, target = Path(out), paths.REPORT / name
    manifest = _manifest(source)
    if changed := kept.changed(source, manifest):
        raise UserError(f"{source / changed[0]} was changed after the report was built. Run make report again.")
    part = target.with_name(f".{target.name}.part")  # replaces the published report once it is complete
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
    """Return the manifest of the report in a build folder: SHA-256 by file name."""
    try:
        return files.read_json(out / MANIFEST)
    except (OSError, ValueError) as error:
        raise UserError(f"There is no report in {out}. Build it first: make report.") from error


def page(folder):
    """Return the page of a published report that shows FIGURE, or else its first page, as the bytes of a PNG."""
    text = re.sub("(?s)<details>.*?</details>", "", (folder / "README.md").read_text(encoding="utf-8"))
    numbers = f'query(figure).filter(f => repr(f.body).contains("{FIGURE}.png")).map(f => f.location().page())'
    source = f"{_head()}\n{_pandoc(text, 'typst')}\n#context [#metadata({numbers}) <pages>]"
    number, *_ = json.loads(_compiler(source, folder).query("<pages>", field="value", one=True)) or [1]
    pages = _compiler(source, folder).compile(format="png", ppi=84.0)
    with Image.open(io.BytesIO(pages[number - 1] if isinstance(pages, list) else pages)) as picture:
        file = io.BytesIO()
        picture.convert("RGB").quantize(128).save(file, "png", optimize=True)
        return file.getvalue()


def export(out, names, formats, dpi, into):
    """Write figures in other formats, from their PDFs.

    Args:
        out: build folder.
        names: names of kept figures; empty for all figures of the report.
        formats: some of pdf, svg and png.
        dpi: resolution of PNG files.
        into: folder for the files.

    Returns:
        The written paths, and the names of figures that differ from the report's.

    Raises:
        UserError: a format or a figure is unknown, or there is no report.
    """
    out = Path(out)
    if unknown := [kind for kind in formats if kind not in FORMATS]:
        raise UserError(f"--format {','.join(formats)}: {unknown[0]!r} is not a format. Choose from {listed(FORMATS)}.")
    manifest = _manifest(out)
    names = names or [Path(file).stem for file in manifest if file.startswith("figures/") and file.endswith(".pdf")]
    known = [path.stem for path in sorted((out / "figures").glob("*.pdf"))]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"There is no figure {unknown[0]!r} in {out}. It has {', '.join(known) or 'none'}.")
    pdfs, written = {name: f"figures/{name}.pdf" for name in names}, []
    for (name, pdf), kind in itertools.product(pdfs.items(), dict.fromkeys(formats)):
        path = into / f"{name}.{kind}"
        with files.replacing(path) as temporary:
            if kind == "pdf":
                shutil.copy(out / pdf, temporary)
            else:
                source = f'#set page(width: auto, height: auto, margin: 0pt)\n#image("{pdf}")'
                temporary.write_bytes(_compiler(source, out).compile(format=kind, ppi=float(dpi)))
        written.append(path)
    changed = kept.changed(out, {pdf: manifest.get(pdf) for pdf in pdfs.values()})
    return written, [Path(pdf).stem for pdf in changed]
