"""``python -m mupscale``."""

import sys

from mupscale.cli import main

sys.exit(main())
