"""The report: one Markdown template, rendered for code hosts, for the browser and for paper.

pandoc turns Markdown into HTML and typst, typst sets the PDF; both come with Python packages and
work offline.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

import jinja2
import pypandoc
import typst

from hw1lib import files
from hw1lib.errors import UserError

# $…$, raw TeX and @citations stay plain text, as on a code host.
MARKDOWN = "markdown-tex_math_dollars-raw_tex-citations-yaml_metadata_block+pipe_tables"


class Book:
    """What a template may call; each returns Markdown.

    Attributes:
        has: dict from problem (1, 2) to whether the data holds it.
        facts: plain values such as about and profile.
    """

    def __init__(self, table, say, code, note, figure_folder, has, facts):
        self.table = table
        self.say = say
        self.code = code
        self.note = note
        self.has = has
        self.facts = facts
        self._folder = figure_folder
        self._figures = 0

    def figure(self, name, caption):
        """A numbered figure, which must have been drawn."""
        path = Path(self._folder) / f"{name}.png"
        if not path.is_file():
            raise UserError(f"{path} is missing. Run the same command again to draw it.")
        self._figures += 1
        return f"![Figure {self._figures}. {caption}](figures/{name}.png)"


def markdown(template, book, target):
    """Fills the template.

    Args:
        template: path of the Jinja template.
        book: what it may call; figures are numbered anew.
        target: markdown, html or pdf; only appendices differ between them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    book._figures = 0
    text = environment.get_template(template.name).render(
        table=book.table, say=book.say, code=book.code, note=book.note, figure=book.figure,
        has=book.has, target=target, **book.facts,
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def write(out, template, book):
    """Writes report.md, report.html and report.pdf into a build folder.

    Args:
        out: the build folder; its figures/ holds every picture as PNG and PDF.
        template: path of the Jinja template; style.css and page.typ lie beside it.
    """
    out = Path(out)
    about = book.facts["about"]
    title = re.sub(r"\\(.)", r"\1", f"{about['title']} – {about['name']}")  # no Markdown there
    files.write_text(out / "report.md", markdown(template, book, "markdown"))
    options = {"format": MARKDOWN, "verify_format": False}
    wide = "--columns=10000"  # else pandoc gives long tables columns of equal width
    with files.replacing(out / "report.html") as temporary:
        html = pypandoc.convert_text(
            markdown(template, book, "html"), "html5", **options,
            extra_args=[
                wide, "--standalone", "--embed-resources", f"--resource-path={out}",
                f"--metadata=pagetitle:{title}", "--metadata=lang:en", "--section-divs",
                f"--css={template.parent / 'style.css'}",
            ],
        )
        temporary.write_text(html, encoding="utf-8")
    body = pypandoc.convert_text(
        markdown(template, book, "pdf"), "typst", extra_args=[wide], **options
    )
    body = re.sub(r'"figures/([\w-]+)\.png"', r'"figures/\1.pdf"', body)  # sharp at any size
    body = f"#set document(title: {json.dumps(title, ensure_ascii=False)})\n{body}"
    page = (template.parent / "page.typ").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        shutil.copytree(out / "figures", Path(folder) / "figures")
        source = Path(folder) / "report.typ"
        source.write_text(f"{page}\n{body}", encoding="utf-8")
        foreign = max(body) >= "\u2e80"  # Chinese and the like, which typst's own fonts lack
        pdf = typst.compile(str(source), ignore_system_fonts=not foreign, timestamp=0)
    with files.replacing(out / "report.pdf") as temporary:
        temporary.write_bytes(pdf)
