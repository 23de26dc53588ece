"""Rendering what was kept: included by kind, numbered, and read back as a browser reads it."""

import io
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hw1lib import files, kept, paths
from hw1lib.chapters import ch00_data, phrases
from hw1lib.errors import UserError
from hw1lib.report import render
from hw1lib.workbook import Workbook
from tests.chapters.made import NASTY, Page


def keep(out, name, thing, caption=""):
    Workbook.keep(types.SimpleNamespace(out=out, _used={}, notebook="a notebook"), name, thing, caption)


def line():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A function from a template to the report's page, its text for code hosts, and typst's source."""
    for name in ("style.css", "page.typ"):
        (tmp_path / name).write_text((paths.REPORT / name).read_text())
    (tmp_path / "figures").mkdir()
    for name in ("ABOUT", "TEMPLATE", "NOTES"):
        monkeypatch.setattr(paths, name, tmp_path / name)
    sources, compiler = [], render._compiler

    def record(source, folder):
        sources.append(source)
        return compiler(source, folder)

    monkeypatch.setattr(render, "_compiler", record)

    def build(template, **about):
        texts = {"title": "T", "name": "N", "id": "R1"} | about
        paths.ABOUT.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in texts.items()), encoding="utf-8")
        head = "# {{ about.title }}\n\n**{{ about.name }}** · {{ about.id }}\n\n"
        paths.TEMPLATE.write_text(f"{head}{template}\n\nThe end.\n", encoding="utf-8")
        for name in render.NUMBERS:
            files.write_text(tmp_path / name, name)
        render.write(tmp_path, list(kept.entries(tmp_path)), {})
        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        page.assert_harmless()
        assert page.words.endswith("The end.")  # nothing hid the rest
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
        return page, (tmp_path / "report.md").read_text(encoding="utf-8"), sources[-1]

    return build


# --- what was kept


def test_what_was_kept_is_included_by_its_kind_and_figures_are_numbered(tmp_path, report):
    keep(tmp_path, "one", line(), "A caption\n  of two lines.")
    keep(tmp_path, "two", line(), 'Odd: "q" – 5 % *of* `it`, <b>, {{ x }}, #let x, $y$ and [here].')
    keep(tmp_path, "counts", pd.DataFrame({"model": ["a"], "miou": [0.5]}))
    keep(tmp_path, "said", "Some **words**.\n\n" + phrases.code("f(<b>) *x*\n  $y$ #z"))
    appendix = '{% if target == "pdf" %}for paper{% else %}for screens{% endif %}'
    names = "\n\n\n\n".join(f'{{{{ kept("{name}") }}}}' for name in ("two", "counts", "said", "one"))
    page, text, paper = report(f"{names}\n\n{appendix}")
    assert "for screens" in text and "for screens" in page.words and "for paper" in paper and "\n\n\n" not in text
    assert "f(<b>) *x*\n  $y$ #z" in page.text and "| a | 0.500 |" in text
    assert "![Figure 2. A caption of two lines.](figures/one.png)" in text
    assert "Figure 1. Odd: “q” – 5 % of it, " in page.words and "{{ x }}, #let x, $y$ and [here]." in page.words
    assert page.tags().count("img") == 2 and {"table", "strong", "em", "code"} <= set(page.tags())
    assert "figures/two.pdf" in paper and ".png" not in paper


@pytest.mark.parametrize(
    ("lost", "text"),
    [("kept/one.json", None), ("figures/one.pdf", "%PDF"), ("text/said.md", None), ("kept/said.json", '{"kind": '),
     ("kept/said.json", "{}")],
)  # fmt: skip
def test_what_was_changed_since_it_was_kept_is_named_with_a_remedy(tmp_path, lost, text):
    keep(tmp_path, "said", "Words.")
    keep(tmp_path, "one", line(), "A figure.")
    (tmp_path / lost).unlink()
    if text:
        (tmp_path / lost).write_text(text)
    with pytest.raises(UserError, match=f"'{Path(lost).stem}' in .* was changed after its notebook kept it. Run"):
        render.Kept(tmp_path, ["one", "said"])
    with pytest.raises(UserError, match=r"report.md.j2 includes 'two'.*book.keep"):
        render.Kept(tmp_path, [])("two")


@pytest.mark.parametrize(
    ("template", "message"), [("{{ kept(", "line 7 cannot be filled"), ("{{ typo }}", "'typo' is undefined")]
)
def test_a_template_that_cannot_be_filled_is_named(report, template, message):
    with pytest.raises(UserError, match=f"template .*{message}"):
        report(template)


# --- a report with nasty names everywhere


def test_nasty_names_are_shown_literally(tmp_path, report):
    keep(tmp_path, "one", line(), "A figure.")
    keep(tmp_path, "names", pd.DataFrame({"classes": NASTY, "n": 1}))
    keep(tmp_path, "warnings", ch00_data.weaknesses([f"train: {name} is odd." for name in NASTY], 1))
    files.write_text(paths.NOTES / "q.md", "\n\n".join(f"note {name}" for name in NASTY) + "\n\n<!-- never closed")
    nasty = " ".join(NASTY)
    template = '{{ kept("names") }}\n\n{{ kept("warnings") }}\n\n{{ note("q") }}\n\n{{ kept("one") }}'
    page, _, _ = report(template, title=f"t {nasty}", name=f"n {nasty}", id=f"i {nasty}")
    for text in [f"train: {name} is odd." for name in NASTY] + [f"{start} {nasty}" for start in "tni"]:
        assert " ".join(text.split()) in page.words
    assert page.tags().count("tr") == 1 + len(NASTY) and page.tags().count("img") == 1


def test_the_title_of_page_and_pdf_is_the_plain_text(report):
    """Neither is Markdown, so nothing is escaped. Chinese characters need a system font."""
    page, _, paper = report("Words.", title="HW_1 *x* – “ü” 王小明", name='A "B" \\ <C>')
    expected = 'HW_1 *x* – “ü” 王小明 – A "B" \\ <C>'
    assert page.title == expected
    assert 'title: "{}"'.format(expected.replace("\\", "\\\\").replace('"', '\\"')) in paper


# --- published, exported


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A build folder with a report, as `publish` and `export` find it."""
    out = tmp_path_factory.mktemp("sealed")
    for name in ("one", "two", render.FIGURE):
        keep(out, name, line())
    keep(out, "counts", pd.DataFrame({"n": [1]}))
    for name in render.NUMBERS:
        files.write_text(out / name, name)
    files.write_text(out / "figures" / "export" / "one.svg", "old")
    text = "# Title\n\n![One.](figures/one.png)\n\n<details>\n\nlong\n\n</details>\n"
    files.write_text(out / "report.md", text + "\n\nwords" * 99 + f"\n\n![Two.](figures/{render.FIGURE}.png)\n")
    render.seal(out, ["one", render.FIGURE, "counts"])  # and `two` is of an earlier report
    return out


@pytest.fixture
def built(sealed, tmp_path, monkeypatch):
    """A copy of it, which a test may change; report/ is elsewhere."""
    monkeypatch.setattr(paths, "REPORT", tmp_path / "report")
    return shutil.copytree(sealed, tmp_path / "build")


def test_a_report_is_published_completely_or_not_at_all(built):
    files.write_text(paths.REPORT / "mine" / "figures" / "gone.png", "old")
    target = render.publish(built, "mine")
    published = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    figures = {"figures/one.png", f"figures/{render.FIGURE}.png", "page.png"}
    assert published == {"README.md", *render.NUMBERS, "tables/counts.csv"} | figures
    assert (target / "README.md").read_text() == (built / "report.md").read_text() and target == paths.REPORT / "mine"
    assert [path.name for path in paths.REPORT.iterdir()] == ["mine"]
    changed = "was changed after the report was built. Run make report again"
    for file, message in ((f"figures/{render.FIGURE}.png", changed), (render.MANIFEST, "There is no report")):
        (built / file).write_text("changed")
        with pytest.raises(UserError, match=message):
            render.publish(built, "mine")
        assert (target / "README.md").is_file()


def test_the_picture_shows_the_page_with_the_figure_or_the_first_page(built):
    target = render.publish(built, "mine")
    second = (target / render.PAGE).read_bytes()
    text = (target / "README.md").read_text()
    (target / "README.md").write_text(text.replace(render.FIGURE, "one"))
    first, second = (np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in (render.page(target), second))
    assert len(second) == 982 and (first != second).mean() > 0.02


def test_figures_are_exported_in_each_format(built, tmp_path):
    into = tmp_path / "into"
    (pdf, svg, png), others = render.export(built, ["two"], ["pdf", "svg", "png"], 100, into)
    assert others == ["two"]  # which the report does not show
    assert {path.name for path in into.iterdir()} == {"two.pdf", "two.svg", "two.png"} == {pdf.name, svg.name, png.name}
    assert pdf.read_bytes() == (built / "figures" / "two.pdf").read_bytes() and svg.read_text().startswith("<svg")
    with Image.open(png) as image:
        assert image.size == (200, 100)
    written, others = render.export(built, [], ["pdf", "pdf"], 100, into)
    assert [path.name for path in written] == [f"{render.FIGURE}.pdf", "one.pdf"] and others == []


@pytest.mark.parametrize(
    ("names", "formats", "message"),
    [(["one", "three"], ["pdf"], "no figure 'three'.*It has finetune_accuracy, one, two"),
     (["counts"], ["pdf"], "no figure 'counts'"), (["one"], ["pdf", "jpg"], "--format pdf,jpg: 'jpg'")],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_before_anything_is_written(built, tmp_path, names, formats, message):
    with pytest.raises(UserError, match=message):
        render.export(built, names, formats, 100, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="There is no report in .*make report"):
        render.export(tmp_path / "nowhere", [], ["pdf"], 100, tmp_path / "other")
