"""Entry point of `python -m hw1lib`."""

import signal
import sys

from hw1lib.errors import STOPPED

if __name__ == "__main__":  # kernels of notebooks import this file, too
    try:
        from hw1lib.cli import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on Python would print a traceback
    except KeyboardInterrupt:  # while modules are imported
        sys.exit(f"\n{STOPPED}")
    sys.exit(code)
