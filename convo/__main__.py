"""``python -m convo``."""

from __future__ import annotations

import gc
import sys

from convo.commands.cli import main
from convo.observe.standard_files import report_crash

if __name__ == "__main__":
    # What is imported stays: to look for garbage among it after every 700 objects is a tenth of a start.
    gc.set_threshold(10_000)
    sys.excepthook = report_crash
    sys.exit(main())
