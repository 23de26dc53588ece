"""Numbers, intervals, comparisons and lists as text, and the templates that use them."""

import contextlib
import functools
import re

import jinja2

from hw1lib import paths
from hw1lib.errors import UserError

LEVEL = 0.05  # significance level of all tests
ONE_PLACE = "no interval: one place"  # where all images show one place, so a bootstrap over places is undefined
ALL_AGREE = "no interval, as all seeds agree"


def percent(value):
    """Format a fraction in percent: "42.1 %"."""
    return f"{100 * value:.1f} %"


def fraction(value):
    """Format a fraction with three digits: "0.687"."""
    return f"{value:.3f}"


def points(value):
    """Format a difference of fractions: "4.2 percentage points"."""
    return f"{100 * value:.1f} percentage points"


def p_value(p):
    """Format a p-value with its symbol: "p = 0.042", "p < 0.001"."""
    number = p_number(p)
    return f"p {number}" if number.startswith("<") else f"p = {number}"


def p_number(p):
    """Format a p-value with three digits, or with more where rounding would turn it into LEVEL."""
    if p < 0.001:
        return "< 0.001"
    digits = 3
    while p != LEVEL and round(p, digits) == LEVEL:
        digits += 1
    return f"{p:.{digits}f}"


def number(value, form):
    """Format a number with a typographic minus sign."""
    return f"{value:{form}}".replace("-", "−")


def interval(low, high, form=".3f", missing=ONE_PLACE):
    """Format an interval: "−0.003 to 0.020"; `missing` if its ends are nan."""
    return f"{number(low, form)} to {number(high, form)}" if low == low else missing


def confidence(low, high, form=".3f", missing=ONE_PLACE):
    """Format an interval with its level: "95 % interval −0.003 to 0.020"; `missing` if its ends are nan."""
    return f"95 % interval {interval(low, high, form)}" if low == low else missing


def comparison(difference, low, high, other, form=".3f", unit="", missing=ONE_PLACE):
    """Return a verb phrase: "is 1.2 points above B (95 % interval −4.9 to 7.2), which is not significant".

    Args:
        difference: subject minus `other`; below zero it is given as "below", with its interval reversed.
        low, high: 95 % interval of the difference; if nan, the phrase does not mention significance.
        other: what the subject is compared with.
        form: format of the numbers.
        unit: text after the difference, with a leading space, such as " points".
        missing: text in place of the interval if it is nan.
    """
    if difference < 0:
        low, high = -high, -low
    size = f"{abs(difference):{form}}{unit} {'below' if difference < 0 else 'above'} {other}"
    size = f"level with {other}" if difference == 0 else size
    return f"is {size} ({confidence(low, high, form, missing)}){verdict(low, high)}"


def change(difference, low, high, form="+.3f"):
    """Format a signed change: "+0.006 (95 % interval +0.002 to +0.008)"; arguments as in `comparison`."""
    return f"{number(difference, form)} ({confidence(low, high, form)}){verdict(low, high)}"


def verdict(low, high):
    """Return ", which is not significant" if an interval of a difference includes zero, else ""."""
    return ", which is not significant" if low <= 0 <= high else ""


def listed(items):
    """Join items: "A, B and C"."""
    *first, end = map(str, items)
    return f"{', '.join(first)} and {end}" if first else end


def capital(text):
    """Capitalise the first letter of a text, except that of "k-NN"."""
    return text if text.startswith("k-NN") else text[:1].upper() + text[1:]


def escape(text):
    """Escape a text for one line of Markdown, so that it gives no markup, HTML or typographic replacements."""
    special = r"""[\\`*_{}\[\]<>#|~^$@&'"]|(?<=-)-|(?<=\.)\."""  # the last two: -- and ...
    return re.sub(special, r"\\\g<0>", " ".join(str(text).split()))


def folded(title, markdown):
    """Fold Markdown below a title that unfolds it when clicked; a PDF shows it in full."""
    return f"<details><summary>{title}</summary>\n\n{markdown}\n\n</details>"


def code(text):
    """Return a text as a Markdown code block."""
    return f"```\n{text}\n```"


FILTERS = {
    "thousands": "{:,}".format,
    "percent": percent,
    "fraction": fraction,
    "points": points,
    "number": number,
    "confidence": lambda ends: confidence(*ends),
    "listed": listed,
    "capital": capital,
}


@functools.cache
def _environment(folder):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= FILTERS
    return environment


@contextlib.contextmanager
def template(path):
    """Yield a Jinja template with FILTERS.

    Raises:
        UserError: the file is missing or not a template, or uses an undefined name.
    """
    try:
        yield _environment(path.parent).get_template(path.name)
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"The template {path}{line} cannot be filled: {error.message}.") from error


def sentences(macro, /, **facts):
    """Fill a macro of report/sentences.j2 with facts and return its text as one paragraph."""
    with template(paths.SENTENCES) as macros:
        text = getattr(macros.module, macro)(**facts)
    return " ".join(text.split())
