"""``python -m convo``."""

from __future__ import annotations

import sys

from convo.commands.cli import main
from convo.observe.standard_files import report_crash

if __name__ == "__main__":
    sys.excepthook = report_crash
    sys.exit(main())
