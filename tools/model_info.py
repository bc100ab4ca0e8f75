"""What an exported network is made of; `--help` explains the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ppfcos.cli.model_info import main

if __name__ == "__main__":
    sys.exit(main())
