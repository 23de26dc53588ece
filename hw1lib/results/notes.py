"""Notes of the author's in the report: their Markdown, but nothing in it that could act."""

import json

import pypandoc

from hw1lib.results.report import MARKDOWN
from hw1lib.results.tables import escape

# Plain Markdown: no raw HTML, no raw typst, no attributes.
NOTES = "commonmark+pipe_tables+strikeout+footnotes-raw_html"
PLACES = ("https://", "http://", "mailto:", "#")  # that a link of a note may lead to


def tame(text):
    """Markdown in which nothing acts: no HTML, no picture, no script behind a link.

    Pictures, and links that lead elsewhere than to PLACES, become their text.
    """
    document = _tamed(json.loads(pypandoc.convert_text(text, "json", format=NOTES)))
    return pypandoc.convert_text(
        json.dumps(document), MARKDOWN, format="json", verify_format=False,
        extra_args=["--wrap=preserve"],
    ).strip("\n")


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
