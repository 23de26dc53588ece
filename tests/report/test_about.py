"""report/about.toml and other files of the report are checked before anything is trained."""

import pytest

from hw1lib import paths
from hw1lib.report import render
from tests.conftest import refused

WHOLE = 'title = "HW1"\nname = "Zoë Ω"\nid = "R1"\n'


@pytest.fixture
def about(tmp_path, monkeypatch):
    """A function that writes about.toml, in a folder without notes."""
    monkeypatch.setattr(paths, "ABOUT", tmp_path / "about.toml")
    monkeypatch.setattr(paths, "NOTES", tmp_path)
    return lambda content: paths.ABOUT.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("content", [WHOLE.encode(code) for code in ("utf-8", "utf-8-sig", "utf-16")])
def test_it_may_have_any_unicode_encoding(about, content):
    about(content)
    assert render.about() == {"title": "HW1", "name": "Zoë Ω", "id": "R1"} and render.check() == ([], [])


def test_numbers_become_text_lines_are_joined_and_the_file_is_optional(about):
    assert render.about() == render.ABOUT and "about.toml is missing" in render.check()[1][0]
    about('title = """\n# A\nB"""\nname = ""\nid = 123\nName = "x"\n')
    assert render.about() == {"title": "# A B", "name": "", "id": "123"}
    problems, warnings = render.check()
    assert problems == [] and len(warnings) == 1 and "Name is not used. Did you mean name?" in warnings[0]


WRONG = {
    "latin-1": (WHOLE.replace("Ω", "").encode("latin-1"), "not UTF-8 text in line 2"),
    "syntax": ("title = HW1\n", "not valid TOML"),
    "empty": ("", "title is missing or not text"),
    "truth": (WHOLE.replace('"R1"', "true"), "id is missing or not text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_named_before_anything_is_trained(about, course_data, tmp_path, capsys, case):
    content, words = WRONG[case]
    about(content)
    (problem,) = render.check()[0]
    assert words in problem and str(paths.ABOUT) in problem and "\n" not in problem
    if case == "latin-1":
        (tmp_path / "problem1-1.md").write_bytes(b"caf\xe9")
        options = ("--profile", "smoke", "--data-root", course_data, "--out", tmp_path / "out")
        text = refused(capsys, "report", *options)
        assert "2 problems" in text and words in text and "problem1-1.md" in text and not (tmp_path / "out").exists()


def test_a_missing_template_is_named(about, monkeypatch, tmp_path):
    about(WHOLE)
    monkeypatch.setattr(paths, "TEMPLATE", tmp_path / "report.md.j2")
    assert [problem.split()[0] for problem in render.check()[0]] == [
        str(tmp_path / name) for name in ("report.md.j2", "style.css", "page.typ")
    ]
