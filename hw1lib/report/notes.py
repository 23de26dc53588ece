"""The author's own paragraphs in the report: Markdown that cannot load or run anything."""

import json

import pypandoc

from hw1lib import paths
from hw1lib.chapters.phrases import escape
from hw1lib.data.csv_rows import read_text

# Notes are plain Markdown: HTML is shown as text, and attributes and other raw formats are not read.
NOTES = "markdown_strict-raw_html+pipe_tables+strikeout+footnotes+backtick_code_blocks+space_in_atx_header"
NOTES += "+lists_without_preceding_blankline+intraword_underscores"
# The report: $…$, raw TeX and @citations stay plain text, as on a code host.
MARKDOWN = "markdown-tex_math_dollars-raw_tex-citations-yaml_metadata_block+pipe_tables"
LINKS = ("https://", "http://", "mailto:", "#")  # allowed beginnings of a link in a note


def note(question):
    """Return report/notes/<question>.md as a block quote, marked as the author's; "" if the file is missing or empty.

    Raises:
        UserError: the file cannot be read.
    """
    path = paths.NOTES / f"{question}.md"
    text = harmless(read_text(path)) if path.is_file() else ""
    quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    return f"> **The author's note.**\n>\n{quoted}" if text else ""


def unused(notes):
    """Return a sentence for each file in report/notes/ that the report does not show.

    Args:
        notes: dict from the template's questions to what `note` returned.
    """
    sentences, files = [], {f"{question}.md": text for question, text in notes.items()}
    for path in sorted(paths.NOTES.glob("[!.]*")):
        if path.name in files and path.is_file():
            sentences += [] if files[path.name] else [f"{path} is empty, so the report shows no note there."]
        elif path.name != "README.md":
            sentences.append(f"{path} is not in the report. Rename it to one of {', '.join(files)}.")
    return sentences


def harmless(text):
    """Return a note as the report's Markdown; pictures, and links that do not start with one of LINKS, become text."""
    document = json.dumps(_harmless(json.loads(pypandoc.convert_text(text, "json", format=NOTES))))
    options = {"format": "json", "verify_format": False, "extra_args": ["--wrap=preserve"]}
    return pypandoc.convert_text(document, MARKDOWN, **options).strip("\n")


def _harmless(node):
    """Return a node of pandoc's document tree with escaped text, and without pictures and unsafe links."""
    if isinstance(node, list):
        return [_harmless(item) for item in node]
    if not isinstance(node, dict):
        return node
    kind, content = node.get("t"), node.get("c")
    if kind == "Str":  # pandoc escapes less: `code`{=html} would become HTML
        return {"t": "RawInline", "c": ["markdown", escape(content)]}
    if kind == "Image" or (kind == "Link" and not content[2][0].lower().startswith(LINKS)):
        return {"t": "Span", "c": [["", [], []], _harmless(content[1])]}
    if kind == "Link":
        return {"t": kind, "c": [["", [], []], _harmless(content[1]), content[2]]}
    return {key: _harmless(value) for key, value in node.items()}
