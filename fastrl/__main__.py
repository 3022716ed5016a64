"""``python -m fastrl`` is the `fastrl` command."""

import sys

from fastrl.cli import main

sys.exit(main())
