"""`python -m fl_lightning.cli`."""

import sys

from fl_lightning.cli._main import main

if __name__ == "__main__":
    sys.exit(main())
