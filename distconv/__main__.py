"""`python -m distconv`."""

import sys

from distconv.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
