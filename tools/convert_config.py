"""Runs the command `convert_config` of the checkout that this file lies in; see its --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ppfcos.cli.convert_config import main

if __name__ == "__main__":
    sys.exit(main())
