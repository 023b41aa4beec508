"""`python -m mmdiff` is the `mmdiff` command."""

import sys

from mmdiff.cli.main import main

sys.exit(main())
