"""`python -m velatura.runtime`: the command line where the script is not installed."""

import sys

from .cli import main

sys.exit(main())
