"""`python -m flows.cli` is `scalingnote`."""

import sys

from flows.cli import start

sys.exit(start())
