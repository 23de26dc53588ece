"""python -m hw1lib"""

import sys

from hw1lib.cli import main

sys.exit(main())
