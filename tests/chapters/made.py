"""Small data for the tests of the chapters, and checks of every figure and every page."""

import html.parser
import io

import numpy as np
from matplotlib import pyplot
from PIL import Image

from hw1lib.chapters import style
from hw1lib.data import layout

NASTY = (
    "<script>alert(1)</script>", "a|b", "*x*", "[l](javascript:1)", "$x$", "_u_", "`c`", "<img src=x onerror=alert(1)>",
    "![i](http://example.com/i.png)", "a\nb", "# h", "~~s~~", "<!-- c", "]]>", "&lt;", "@who", "x^2^", "\\", "{=html}",
    "[a]{onclick=alert(1)}", "<a@b.cc>", "https://example.com/x", ":::", "%", "{{ 1 / 0 }}", "{% raw %}",
    "'q' \"r\" -- ...", '#read("x")', "1. one", "- item", "^[note]", "[^1]", ":smile:", "\\(x\\)", "| --- |", "漢 é",
)  # fmt: skip


def classes(count):
    return tuple(f"Class_{number}" for number in range(count))


def image(height=24, width=None, seed=0):
    """(H, W, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width or height, 3)).astype(np.uint8)


def land(height=24, width=None, seed=0):
    """(H, W) land-cover classes in nine patches."""
    patches = np.random.default_rng(seed).integers(0, 7, (3, 3)).astype(np.uint8)
    return patches.repeat(height // 3, 0).repeat((width or height) // 3, 1)


def split(folder, labels, names):
    """Write a layout.Split whose image n is plain gray of value n."""
    files = tuple(f"{number:03d}.png" for number in range(len(labels)))
    for number, file in enumerate(files):
        Image.new("RGB", (9, 6), (number,) * 3).save(folder / file)
    return layout.Split(folder, files, np.array(labels, dtype=np.int64), tuple(names))


def counted(labels, names):
    """Return a layout.Split without files."""
    return layout.Split(None, ("",) * len(labels), np.array(labels), tuple(names))


def assert_drawn(figure, wide=7.2):
    """Assert that a figure is not empty, fits the page and is unknown to pyplot."""
    pixels = pyplot.imread(io.BytesIO(style.png(figure, dpi=40)))
    assert min(pixels.shape[:2]) > 20 and pixels[..., :3].std() > 0.01
    assert figure.get_figwidth() <= wide
    assert not pyplot.get_fignums()


def pictures(figure):
    """Return the images of a figure in the order of its axes."""
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


ACTIVE = {"script", "iframe", "object", "embed", "form", "base", "link", "svg", "a", "img"}
PLACES = ("https://", "http://", "mailto:", "#")


class Page(html.parser.HTMLParser):
    """An HTML page as a browser parses it: elements, visible text, title."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.title, self._inside = [], "", "", ""
        self.feed(text)
        self.close()
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag if tag in ("style", "title") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        self.title += data * (self._inside == "title")
        self.text += data * (not self._inside)

    def tags(self):
        return [tag for tag, _ in self.elements]

    def assert_harmless(self, also=("a", "img")):
        """Assert that nothing runs, nothing is fetched from elsewhere, and links have harmless targets."""
        for tag, attributes in self.elements:
            assert tag not in ACTIVE - set(also), (tag, attributes)
            assert attributes.get("http-equiv") is None
            for name, value in attributes.items():
                value = "".join((value or "").split()).lower()
                assert not name.startswith("on") and name not in ("srcdoc", "formaction"), name
                assert "url(" not in value
                assert name not in ("src", "srcset", "poster", "data", "background") or value.startswith("data:image/")
                assert name != "href" or value.startswith(PLACES), value
