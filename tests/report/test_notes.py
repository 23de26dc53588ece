"""The author's notes: Markdown works, but nothing in them loads or runs, in HTML, Markdown or PDF."""

import re

import pypandoc
import pytest

from hw1lib import paths
from hw1lib.errors import UserError
from hw1lib.report import notes
from tests.chapters.made import NASTY, Page

NOTES = {
    "html": "<script>alert(1)</script>\n\n<div onclick=alert(1)>d</div>",
    "inline raw html": "`<script>alert(1)</script>`{=html}",
    "raw html in odd fences": "```=html\n<script>alert(1)</script>\n```\n\n"
                              "~~~ {=html}\n<script>alert(1)</script>\n~~~\n\n"
                              "```html {onclick=alert(1)} {=html}\n<script>alert(1)</script>\n```",
    "link title": '[x](https://example.com "onclick=alert(1) <b onclick=alert(1)> {onclick=alert(1)}")',
    "inline raw typst": '`#panic("ran")`{=typst}',
    "script link": "[x](javascript:alert(1)) [y](JaVaScRiPt:alert(1)) <javascript:alert(1)>",
    "data link": "[x](data:text/html,<script>alert(1)</script>)",
    "pictures": "![x](https://example.invalid/x.png) ![x](/etc/x.png) ![y](../secret.png) ![x](no-such-file.png)",
    "attributes": "[x]{onclick=alert(1)} ![x](figures/one.png){onerror=alert(1)}\n\n"
                  "# h {onclick=alert(1)}\n\n``` {onclick=alert(1)}\nc\n```",
    "template": "{{ 1 / 0 }} {% raw %}",
    "fence": "```\nnever closed",
    "comment": "<!-- never closed",
    "footnote": "a[^1]\n\n[^1]: javascript:alert(1)",
    "names": "\n\n".join(NASTY),
}  # fmt: skip


def converted(text, to):
    return pypandoc.convert_text(text, to, format=notes.MARKDOWN, verify_format=False)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a note and returns it as the report includes it."""
    monkeypatch.setattr(paths, "NOTES", tmp_path)

    def write(content):
        (tmp_path / "problem1-1.md").write_bytes(content if isinstance(content, bytes) else content.encode())
        return notes.note("problem1-1")

    return write


@pytest.mark.parametrize("name", NOTES)
def test_nothing_in_a_note_loads_or_runs(written, name):
    """Its words are still shown, and what follows the note is not affected."""
    text = written(f"before\n\n{NOTES[name]}\n\nafter") + "\n\nThe next paragraph.\n"
    page = Page(converted(text, "html5"))
    page.assert_harmless(also=["a"])
    assert page.words.startswith("The author’s note. before") and "after" in page.words
    assert "The next paragraph." in page.words
    assert page.elements[-1][0] == "p" or "footnote" in name
    paper = re.sub(r"(?s)(`+).*?\1", "", converted(text, "typst"))
    assert not re.search(r"(?<![\\`])#(image|include|panic|read)", paper)


def test_a_note_keeps_its_markdown(written):
    text = written("**bold** [here](https://example.com) `code` 3 < 4\n\n- one\n- two")
    page = Page(converted(text, "html5"))
    assert {"blockquote", "strong", "a", "code", "li"} <= set(page.tags()) and "3 < 4" in page.words
    assert {"href": "https://example.com"} in [attributes for _, attributes in page.elements]
    assert text.startswith("> **The author's note.**") and notes.note("problem1-2") == ""


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\ncaf\xe9"])
def test_a_note_that_is_not_utf8_is_named(written, content):
    with pytest.raises(UserError, match=f"problem1-1.md is not UTF-8 text in line {content.count(10) + 1}"):
        written(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("problem1_2.md", "words", "Rename it to one of problem1-1.md, problem2-1.md"),
        ("problem2-1.md", "\ufeff", "is empty"),
        ("problem2-1.md", "\ufeffwords", None),
        ("README.md", "words", None),
    ],
)
def test_a_file_that_is_not_shown_is_named(written, tmp_path, name, content, message):
    texts = {"problem1-1": written("words")}
    (tmp_path / name).write_text(content, encoding="utf-8")
    texts["problem2-1"] = notes.note("problem2-1")
    sentences = notes.unused(texts)
    assert [(name in sentence, message in sentence) for sentence in sentences] == ([(True, True)] if message else [])
    assert texts["problem1-1"].endswith("words") and "\ufeff" not in texts["problem2-1"]
    assert bool(texts["problem2-1"]) == (name == "problem2-1.md" and "words" in content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_byte_order_mark_is_not_shown(written, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert written(f"{mark}Grüße".encode(encoding)).endswith("> Grüße")
