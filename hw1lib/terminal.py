"""Behaviour in a terminal that all commands share: streams, `--set`, examples, error messages and exit codes."""

import os
import re
import sys
import textwrap
import time
import warnings
from pathlib import Path

import click

from hw1lib import processes, progress
from hw1lib.errors import STOPPED, UserError, did_you_mean, remedy

VARIABLES = (
    "HW1_BUILD",
    "HW1_WEIGHTS_MIRROR",
    "HW1_KILLS",
    "HW1_TEST_THREADS",
    "HW1_EVENTS",
)  # known environment variables
PATH = click.Path(path_type=Path)


def run(commands, argv=None):
    """Parse a command line and run its command.

    Args:
        commands: click.Group, whose commands may return an exit code.
        argv: arguments after the program's name; None for those of this process.

    Returns:
        The exit code. 0: done. 1: an error that the user can fix, printed as one paragraph. 2: wrong usage.
        130: interrupted.
    """
    _open_streams()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged images are reported by name instead
    code, text = 0, ""
    try:
        words = split_settings(sys.argv[1:] if argv is None else argv)
        _warn_of_unknown_variables()
        if words[:1] != ["run"] and processes.under_torchrun():
            if os.environ["RANK"] != "0":
                time.sleep(10)  # rank 0 prints the error, and torchrun then ends this process
                return 1
            raise UserError(
                "torchrun starts processes that share one step, so it can only start `hw1lib run STEP`. Start "
                f"`hw1lib {' '.join(words[:1])}` without it; --set pretrain.processes=2 runs pre-training on two."
            )
        with commands.make_context("hw1lib", words) as context:
            code = commands.invoke(context) or 0
    except click.exceptions.Exit as stop:  # after --help
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        code, text = 1, str(error)
    except ModuleNotFoundError as error:  # such as Dask, which only --cluster needs
        install = ".venv/bin/python -m pip install -r requirements.txt -r requirements-cluster.txt"
        code, text = 1, f"The package {error.name} is missing. Run {install}, then the same command again."
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
    words = []
    for word in map(str, argv):
        if words and words[-1] == "--set":
            words[-1] = f"--set={word}"
        elif words and words[-1].startswith("--set=") and re.match(r"[\w.]*=", word):
            words.append(f"--set={word}")
        else:
            words.append(word)
    return words


def example(words):
    """Return an example that ends a command's help and works in the project's folder."""
    command = f".venv/bin/python -m hw1lib {words}"
    lines = textwrap.wrap(command, 74, break_long_words=False, break_on_hyphens=False)
    return "\b\nExample:\n  " + " \\\n    ".join(lines)  # \b keeps these lines as they are


def group(name, text, words, commands=()):
    """Return a click.Group whose help is `text`, then the example `words`."""
    return click.Group(name, commands, help=text, epilog=example(words))


def command(group, words, options=()):
    """Return a decorator that adds a function to a click.Group, under the last part of the function's name.

    Args:
        group: click.Group.
        words: arguments in the example of the command's help.
        options: list of click.Option, listed before those of the function.
    """

    def add(function):
        name, text = function.__name__.rpartition("_")[2], function.__doc__
        return group.command(name, help=text, short_help=text, epilog=example(words), params=[*options])(function)

    return add


def print_paragraphs(texts):
    """Print each text as a paragraph, wrapped at 80 columns, after an empty line."""
    for text in texts:
        print("", textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False), sep="\n")


def _open_streams():
    """Replace closed standard streams, as the next file to be opened would take their number and receive the output."""
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
    """Flush a stream, or silence it so that Python exits without a traceback; return False if output was lost."""
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return isinstance(error, BrokenPipeError)
    return True


def _warn_of_unknown_variables():
    """Report unknown HW1_… environment variables, and remove them so that child processes do not repeat the report."""
    for name in sorted(name for name in os.environ if name.startswith("HW1_") and name not in VARIABLES):
        del os.environ[name]
        known = f"Known variables are {' and '.join(VARIABLES[:2])}.{did_you_mean(name, VARIABLES)}"
        print(f"The environment variable {name} is not used. {known}", file=sys.stderr)
