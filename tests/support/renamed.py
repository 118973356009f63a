"""A convo on a machine of another name, as a container has after each restart.

python -m tests.support.renamed HOST serve ...
"""

from __future__ import annotations

import socket
import sys

from convo.commands import cli

if __name__ == "__main__":
    host = sys.argv[1]
    socket.gethostname = lambda: host
    sys.exit(cli.main(sys.argv[2:]))
