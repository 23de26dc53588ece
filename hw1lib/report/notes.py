"""The author's own paragraphs in the report: their Markdown, but nothing in it that could act."""

import json

import pypandoc

from hw1lib import paths
from hw1lib.chapters.phrases import escape
from hw1lib.errors import UserError, remedy

# Plain Markdown: no raw HTML, no raw typst, no attributes.
NOTES = "commonmark+pipe_tables+strikeout+footnotes-raw_html"
# What the report is written in: $…$, raw TeX and @citations stay plain text, as on a code host.
MARKDOWN = "markdown-tex_math_dollars-raw_tex-citations-yaml_metadata_block+pipe_tables"
PLACES = ("https://", "http://", "mailto:", "#")  # that a link of a note may lead to


def note(question):
    """Return the paragraphs on a question, from report/notes/<question>.md, marked as the author's; or "".

    Raises:
        UserError: the file cannot be read.
    """
    path = paths.NOTES / f"{question}.md"
    text = tame(read_text(path)) if path.is_file() else ""
    quoted = "\n".join(f"> {line}".rstrip() for line in text.splitlines())
    return f"> **The author's note.**\n>\n{quoted}" if text else ""


def unused(notes):
    """Return a sentence for each thing in report/notes/ that a report does not show.

    Args:
        notes: dict from each of its questions to what `note` returned.
    """
    sentences, files = [], {f"{question}.md": text for question, text in notes.items()}
    for path in sorted(paths.NOTES.glob("[!.]*")):
        if path.name in files and path.is_file():
            sentences += [] if files[path.name] else [f"{path} is empty, so the report shows no note there."]
        elif path.name != "README.md":
            sentences.append(f"{path} is not in the report: its name is none of {', '.join(files)}.")
    return sentences


def read_text(path):
    """The text of a file that the author edits: UTF-8, or UTF-16 with a byte-order mark, as some editors save.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy(error)}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 text in line {line}. Save it as UTF-8.") from error


def tame(text):
    """Markdown in which nothing acts: no HTML, no picture, no script behind a link.

    Pictures, and links that lead elsewhere than to PLACES, become their text.
    """
    document = json.dumps(_tamed(json.loads(pypandoc.convert_text(text, "json", format=NOTES))))
    options = {"format": "json", "verify_format": False, "extra_args": ["--wrap=preserve"]}
    return pypandoc.convert_text(document, MARKDOWN, **options).strip("\n")


def _tamed(node):
    """A node of pandoc's tree with every text escaped anew, and without attributes."""
    if isinstance(node, list):
        return [_tamed(item) for item in node]
    if not isinstance(node, dict):
        return node

    kind, content = node.get("t"), node.get("c")
    if kind == "Str":
        return _plain(content)
    if kind == "RawInline":
        return _plain(content[1])
    if kind == "RawBlock":
        return {"t": "Para", "c": [_plain(content[1])]}
    if kind in ("Code", "CodeBlock"):
        return {"t": kind, "c": [["", [], []], content[1]]}
    if kind == "Header":
        return {"t": kind, "c": [content[0], ["", [], []], _tamed(content[2])]}
    if kind == "Image" or (kind == "Link" and not content[2][0].lower().startswith(PLACES)):
        return {"t": "Span", "c": [["", [], []], _tamed(content[1])]}
    if kind == "Link":
        return {"t": kind, "c": [["", [], []], _tamed(content[1]), [content[2][0], ""]]}
    return {key: _tamed(value) for key, value in node.items()}


def _plain(text):
    return {"t": "RawInline", "c": ["markdown", escape(text)]}
