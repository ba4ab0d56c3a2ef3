"""``python -m jetrep``: the command line."""

import sys

from jetrep.cli import main

if __name__ == "__main__":
    sys.exit(main())
