"""Behaviour in a terminal that all commands share: streams, `--set`, suggestions, error messages and exit codes."""

import argparse
import os
import re
import sys
import textwrap
import time
import warnings
from typing import ClassVar

from hw1lib import processes, progress
from hw1lib.errors import STOPPED, UserError, did_you_mean, remedy

VARIABLES = ("HW1_BUILD", "HW1_WEIGHTS_MIRROR", "HW1_KILLS", "HW1_TEST_THREADS", "HW1_EVENTS")  # of the environment


def run(build_parser, argv=None):
    """Parse a command line and run its command.

    Args:
        build_parser: function that returns a Parser whose commands set `command` (the name) and `run` (a function of
            the parsed arguments).
        argv: the words after the program's name; None: those of this process.

    Returns:
        The exit code. 0: done. 1: an error that the user can fix, printed as one paragraph. 2: wrong usage.
        130: interrupted.
    """
    _open_streams()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged images are reported by name instead
    code, text = 0, ""
    try:
        arguments = build_parser().parse_args(split_settings(sys.argv[1:] if argv is None else argv))
        _warn_of_unknown_variables()
        if arguments.command != "run" and processes.under_torchrun():
            if os.environ["RANK"] != "0":
                time.sleep(10)  # rank 0 prints the error, and torchrun then ends this process
                return 1
            raise UserError(
                "torchrun starts processes that share one step, so it can only start `hw1lib run STEP`. Start `hw1lib "
                f"{arguments.command}` without it; --set pretrain.processes=2 puts pre-training on two processes."
            )
        code = arguments.run(arguments) or 0
    except SystemExit as stop:  # argparse has printed its help or an error
        code = stop.code
    except UserError as error:
        code, text = 1, str(error)
    except BrokenPipeError:  # as with `| head`: nothing more can be printed
        pass
    except OSError as error:  # such as a full disk, where no caller knew a better message
        path = f"{error.filename}: " if error.filename else ""
        code, text = 1, f"{path}{error.strerror or error}. {remedy(error)}"
    except KeyboardInterrupt:
        code, text = 130, STOPPED
    if not _flush(sys.stdout):
        code, text = code or 1, text or "Standard output cannot be written. Free some disk space."
    if text:
        progress.error(text)
    _flush(sys.stderr)
    return code


def split_settings(argv):
    """Rewrite `--set a=1 b=2 STEP` as `--set=a=1 --set=b=2 STEP`, so that a positional argument may follow."""
    words, in_settings = [], False
    for position, word in enumerate(map(str, argv)):
        if word == "--":
            return words + [str(rest) for rest in argv[position:]]
        is_pair = in_settings and re.match(r"[\w.]*=", word)
        if is_pair and words[-1] == "--set":
            words.pop()
        words.append(f"--set={word}" if is_pair else word)
        in_settings = is_pair or word == "--set" or word.startswith("--set=")
    return words


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the most similar command or option, and ends its help with an example.

    Args:
        example: words after `hw1lib` of a command that works in the project's folder.
    """

    options: ClassVar[set] = set()  # of all commands

    def __init__(self, example="", **settings):
        words = f".venv/bin/python -m hw1lib {example}"
        lines = textwrap.wrap(words, 74, break_long_words=False, break_on_hyphens=False)
        epilog = "example:\n  " + " \\\n    ".join(lines) if example else None
        super().__init__(epilog=epilog, formatter_class=_Formatter, **settings)

    def add_argument(self, *names, **settings):
        self.options.update(names)
        return super().add_argument(*names, **settings)

    def error(self, message):
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2])).replace(" Did", ". Did")
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            message += did_you_mean(unknown[1], self.options).replace(" Did", ". Did")
        super().error(message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text, width):
        """Keep the line breaks of an option's help."""
        return [line for part in text.splitlines() for line in textwrap.wrap(part, width, break_on_hyphens=False)]


def whole_number(low, high):
    """Return an argparse type: a whole number from `low` to `high`."""

    def parse(text):
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def print_paragraphs(texts):
    """Print each text as a paragraph of at most 80 columns, after an empty line."""
    for text in texts:
        print("", textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False), sep="\n")


def _open_streams():
    """Replace closed standard streams: the next file that is opened would take their place and receive the output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or sys.stdout  # with 2>&- errors go to standard output
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may hold bytes that are not UTF-8
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def _flush(stream):
    """Write what a stream buffers; return False on failure, and silence it so that Python exits without a traceback."""
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return isinstance(error, BrokenPipeError)
    return True


def _warn_of_unknown_variables():
    """Report misspelt HW1_… environment variables, and remove them so that child processes do not repeat it."""
    for name in sorted(name for name in os.environ if name.startswith("HW1_") and name not in VARIABLES):
        del os.environ[name]
        known = f"Known variables are {' and '.join(VARIABLES[:2])}.{did_you_mean(name, VARIABLES)}"
        print(f"The environment variable {name} is not used. {known}", file=sys.stderr)
