"""``python -m convo``."""

from __future__ import annotations

import gc
import sys

from convo.commands.cli import main
from convo.observe.standard_files import report_crash

if __name__ == "__main__":
    # What is imported stays: to look for garbage among it is a tenth of a start. A server sets it anew later.
    gc.set_threshold(200_000)
    sys.excepthook = report_crash
    sys.exit(main())
