"""``python -m convo``."""

from __future__ import annotations

import sys

from convo.cli import main

if __name__ == "__main__":
    sys.exit(main())
