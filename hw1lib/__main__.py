"""python -m hw1lib"""

import sys

from hw1lib.cli import main

if __name__ == "__main__":  # processes that are forked for notebooks import this, too
    sys.exit(main())
