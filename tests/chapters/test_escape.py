"""Names, labels and notes are shown as they are written: nothing in them acts.

Reports are built by the real functions and read back as a browser reads them.
"""

import html.parser
import itertools
import json
import string
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pypandoc
import pytest
import typst
from PIL import Image

from hw1lib import answers, gallery, handin, paths, profiles, prose
from hw1lib.data import layout
from hw1lib.errors import UserError
from hw1lib.chapters import style as figures, render as report
from hw1lib.results import tables
from tests.conftest import write_problem2

NASTY = (
    "<script>alert(1)</script>", "a|b", "*x*", "[l](javascript:1)", "$x$", "_u_", "`c`",
    "<img src=x onerror=alert(1)>", "![i](http://example.com/i.png)", "a\nb", "# h", "~~s~~",
    "<!-- c", "]]>", "&lt;", "@who", "x^2^", "\\", "{=html}", "[a]{onclick=alert(1)}", "<a@b.cc>",
    "https://example.com/x", ":::", "%", "{{ 1 / 0 }}", "{% raw %}", "'q' \"r\" -- ...",
    '#read("x")',
)
ELSEWHERE = ("https://", "http://", "mailto:")
ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "meta", "link", "svg", "a", "img"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its elements and the text that it shows."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.title, self._inside = [], "", "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "title"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if "title" in self._inside:
            self.title += data
        elif not self._inside:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())


def assert_harmless(page):
    """Nothing runs, and nothing is fetched from elsewhere."""
    for tag, attributes in page.elements:
        assert tag not in ACTIVE - {"meta", "a", "img"}, (tag, attributes)
        assert attributes.get("http-equiv") is None
        for name, value in attributes.items():
            value = "".join((value or "").split()).lower()
            assert not name.startswith("on") and name not in ("srcdoc", "formaction"), name
            assert not value.startswith(("javascript:", "vbscript:")), value
            if name in ("src", "srcset", "poster", "data", "background"):
                assert value.startswith("data:image/"), value
            assert "url(" not in value


def shown(text):
    """One of these texts as a reader should see it: spaces and line ends are alike."""
    return " ".join(text.split())


# --- escaping itself


def cells(text):
    """The cells that a browser shows of a Markdown table, a line each."""
    page = pypandoc.convert_text(
        text, "html5", format=report.MARKDOWN, verify_format=False, extra_args=["--columns=10000"]
    )
    found = Page(page)
    assert {tag for tag, _ in found.elements} <= {
        "table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"
    }
    return [" ".join(line.split()) for line in found.text.splitlines() if line.strip()]


def test_a_table_shows_every_pair_of_signs_as_it_stands():
    signs = ["".join(pair) for pair in itertools.product(string.punctuation, repeat=2)]
    texts = signs + [f"a{pair}b" for pair in signs] + [sign * 3 for sign in string.punctuation]
    assert cells(tables.markdown(pd.DataFrame({"name": texts})))[1:] == texts


def test_a_table_shows_nasty_names_as_they_stand():
    table = pd.DataFrame({"name": NASTY})
    assert cells(tables.markdown(table))[1:] == [shown(text) for text in NASTY]


@pytest.mark.parametrize("kind", ["gfm", "commonmark"])
def test_a_code_host_and_a_notebook_see_no_element_in_a_name(kind):
    """Both have rules of their own; bare addresses may become links there."""
    text = tables.markdown(pd.DataFrame({"name": NASTY}))
    page = Page(pypandoc.convert_text(text, "html5", format=kind))
    assert not {tag for tag, _ in page.elements} & (ACTIVE - {"a"})
    for tag, attributes in page.elements:
        assert tag != "a" or attributes["href"].startswith(ELSEWHERE)
    assert "<script>alert(1)</script>" in page.words


# --- a report with nasty names everywhere


def about_of(tmp_path, monkeypatch, **values):
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]  # TOML's strings
    (tmp_path / "about.toml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(paths, "ABOUT", tmp_path / "about.toml")
    return handin.about()


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function from a template to the report's page, its text for code hosts, and its PDF."""
    monkeypatch.setattr(paths, "NOTES", tmp_path / "notes")
    (tmp_path / "notes").mkdir()
    for name in ("style.css", "page.typ"):
        (tmp_path / name).write_text((paths.REPORT / name).read_text())
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "figures" / "one.png")
    figures.save(figures.Figure(), tmp_path / "figures" / "one.pdf")

    def made(template="", book=None, note="", **about):
        (tmp_path / "notes" / "q.md").write_text(note, encoding="utf-8")
        texts = {"title": "T", "name": "N", "id": "R1"} | about
        facts = {"about": about_of(tmp_path, monkeypatch, **texts)}
        filled = report.Book(
            table=lambda name: answers.printed(book, name, answers.TABLES[name](book)),
            say=lambda name: prose.SENTENCES[name](book),
            code=lambda name: "", note=handin._note, figure_folder=tmp_path / "figures",
            has={1: True, 2: True}, facts=facts,
        )
        (tmp_path / "t.md.j2").write_text(
            "# {{ about.title }}\n\n**{{ about.name }}** · {{ about.id }}\n\n" + template
            + '\n\n{{ note("q") }}\n\n{{ figure("one", "A figure.") }}\n\nEnd.\n'
        )
        report.write(tmp_path, tmp_path / "t.md.j2", filled)
        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "Figure 1. A figure. End." in page.words  # nothing swallowed the rest
        return page, (tmp_path / "report.md").read_text(), (tmp_path / "report.pdf").read_bytes()

    return made


class Confused:
    """A workbook whose classes are called `classes`; the first two are taken for each other."""

    def __init__(self, classes):
        truth = np.arange(len(classes)).repeat(4)
        wrong = truth.copy()
        wrong[:6] = (1, 1, 0, 0, 0, 0)
        val = SimpleNamespace(labels=truth, classes=classes)
        self.data = SimpleNamespace(problem1=SimpleNamespace(val=val, classes=classes))
        self.profile = profiles.get("smoke")
        self.is_sample = False
        self._wrong = np.stack([wrong, wrong])

    def result(self, step):
        return SimpleNamespace(array=lambda name: self._wrong)

    def metrics(self, step):
        return {"collapsed": False}


@pytest.mark.parametrize("name", NASTY)
def test_a_class_is_shown_in_a_report_as_it_is_called(build, name):
    book = Confused((name, "Mug", "Couch"))
    template = '{{ table("confused") }}\n\n{{ say("ranking") }} {{ say("domains") }}'
    page, _, pdf = build(template, book)
    assert_harmless(page)
    assert f"{shown(name)} – Mug" in page.words
    assert pdf.startswith(b"%PDF")


def everything_book(number, method="slic"):
    row = {"method": method, "image": number, "masks": 3}
    row |= dict.fromkeys(tables.EVERYTHING[3:], 0.5)
    profile = profiles.get("smoke", {"everything.images": [number]})
    return SimpleNamespace(profile=profile, metrics=lambda step: {"rows": [row], "sam": None})


@pytest.mark.parametrize("number", [n for n in NASTY if "\n" not in n])
def test_a_tiles_number_is_shown_in_a_report_as_its_file_is_called(build, number):
    page, _, _ = build('{{ table("everything") }}', everything_book(number))
    assert_harmless(page)
    assert page.words.count(number) == 2  # SAM's empty row and SLIC's


@pytest.mark.parametrize("problem", [1, 2])
def test_what_the_datas_check_says_of_files_is_shown_as_it_stands(build, problem):
    warnings = [f"train: {name} is odd." for name in NASTY]
    book = SimpleNamespace(metrics=lambda step: {"warnings": warnings})
    page, _, _ = build(f'{{{{ say("weaknesses{problem}") }}}}', book)
    assert_harmless(page)
    for text in warnings:
        assert shown(text) in page.words


@pytest.mark.parametrize("name", ["name", "title", "id"])
def test_what_about_toml_says_is_shown_as_it_stands(build, name):
    nasty = " ".join(NASTY)
    page, _, _ = build(**{name: nasty})
    assert_harmless(page)
    assert shown(nasty) in page.words


def test_the_title_of_page_and_pdf_is_the_plain_text(build, monkeypatch):
    """Neither knows Markdown, so nothing is escaped for it."""
    sources = []
    compile_ = typst.compile

    def noted(path, **options):
        sources.append(open(path, encoding="utf-8").read())
        return compile_(path, **options)

    monkeypatch.setattr(report.typst, "compile", noted)
    page, _, _ = build(title="HW_1 *x* – “ü” 王小明", name='A "B" \\ <C>')
    expected = 'HW_1 *x* – “ü” 王小明 – A "B" \\ <C>'
    assert page.title == expected
    quoted = expected.replace("\\", "\\\\").replace('"', '\\"')
    assert f'title: "{quoted}"' in sources[0]


# --- notes: Markdown of the author's, but nothing that acts


NOTES = {
    "html": "<script>alert(1)</script>\n\n<div onclick=alert(1)>d</div>",
    "inline html": "a <b onclick=alert(1)>b</b> <img src=x onerror=alert(1)>",
    "raw html": "```{=html}\n<script>alert(1)</script>\n```",
    "inline raw html": "`<script>alert(1)</script>`{=html}",
    "raw typst": '```{=typst}\n#panic("ran")\n```',
    "inline raw typst": '`#panic("ran")`{=typst}',
    "script link": "[x](javascript:alert(1)) [y](JaVaScRiPt:alert(1)) <javascript:alert(1)>",
    "script reference": "[x][y]\n\n[y]: javascript:alert(1)",
    "data link": "[x](data:text/html,<script>alert(1)</script>)",
    "remote image": "![x](https://example.invalid/x.png)",
    "local image": "![x](SECRET) ![y](../secret.png)",
    "missing image": "![x](no-such-file.png)",
    "attributes": "[x]{onclick=alert(1)} ![x](figures/one.png){onerror=alert(1)}\n\n"
                  "# h {onclick=alert(1)}\n\n``` {onclick=alert(1)}\nc\n```",
    "style": "[x]{style=\"background:url(https://example.invalid/x)\"}",
    "template": "{{ 1 / 0 }} {% raw %}",
    "fence": "```\nnever closed",
    "quote": "> > > deep\n\n- list\n    - list",
    "include": "\n.. include:: SECRET\n\\input{SECRET}",
    "comment": "<!-- never closed",
    "footnote": "a[^1]\n\n[^1]: javascript:alert(1)",
}


@pytest.mark.parametrize("note", NOTES)
def test_nothing_in_a_note_acts(build, tmp_path, note):
    """Not in the page, not in the PDF, and nothing is fetched or read for it."""
    secret = tmp_path.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    text = NOTES[note].replace("SECRET", str(secret))
    page, _, pdf = build(note=f"before\n\n{text}\n\nafter")
    assert_harmless(page)
    pictures = [tag for tag, _ in page.elements].count("img")
    assert pictures <= 1 + text.count("figures/")
    assert "before" in page.words and "after" in page.words
    for tag, attributes in page.elements:
        href = (attributes.get("href") or "").strip().lower()
        assert tag != "a" or href.startswith(("#", *ELSEWHERE)), href
    assert pdf.startswith(b"%PDF")


def test_a_note_keeps_its_markdown(build):
    page, _, _ = build(note="**bold** [here](https://example.com) `code` 3 < 4\n\n- one\n- two")
    tags = [tag for tag, _ in page.elements]
    assert {"blockquote", "strong", "a", "code", "li"} <= set(tags)
    assert "3 < 4" in page.words


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"caf\xe9"])
def test_a_note_that_is_no_utf8_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr(paths, "NOTES", tmp_path)
    (tmp_path / "problem1-1.md").write_bytes(content)
    with pytest.raises(UserError, match="problem1-1.md"):
        handin._note("problem1-1")


# --- figures


@pytest.mark.parametrize("number", ["$x$", "$\\bad$", "<b>", "a_b^c", "%", "$", "杯"])
def test_a_tile_is_drawn_whatever_its_number_is(tmp_path, number):
    """matplotlib would take dollars for a formula, and stop at a wrong one."""
    write_problem2(tmp_path, train=1, validation=1)
    folder = tmp_path / "validation"
    for ending in ("sat.jpg", "mask.png"):
        (folder / f"0001_{ending}").rename(folder / f"{number}_{ending}")
    tiles = layout.Tiles(folder, (number,))
    book = SimpleNamespace(data=SimpleNamespace(problem2=SimpleNamespace(validation=tiles)))
    with figures.style():
        drawn = gallery.tiles(book)
        figures.save(drawn, tmp_path / "tiles.png")
    assert number in [text.get_text() for axes in drawn.axes for text in axes.texts] + [
        axes.get_ylabel() for axes in drawn.axes] + [axes.get_title() for axes in drawn.axes]
