"""`python -m ppfcos`, if the program `ppfcos` is not on the path."""

import sys

from ppfcos.cli.main import main

sys.exit(main())
