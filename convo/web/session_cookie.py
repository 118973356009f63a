"""The cookie of a browser's session: its name, how it is found among others, given and taken back.

Open it to change what a browser is told about it. Browsers keep cookies by host name, whatever the port. So the name
has the installation in it: two installations behind one host name do not sign a person out of each other.
"""

from __future__ import annotations

import math
import re

COOKIE_NAME = "convo_session"
"""What the name begins with."""

_VALUE = r"([0-9a-f]{12})_([0-9A-Za-z_-]{43})"


class SessionCookie:
    """The cookie of one installation, by ``InstallationKey`` and server; an empty id stands for one not known yet."""

    __slots__ = ("_pattern", "forgotten", "installation", "name")

    def __init__(self, installation: str = "") -> None:
        self.installation = installation
        self.name = f"{COOKIE_NAME}_{installation}" if installation else COOKIE_NAME
        self.forgotten = ("Set-Cookie", f"{self.name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
        """The header that makes a browser drop the cookie of a session that is over."""
        self._pattern = re.compile(rf"(?:^|;)[ \t]*{self.name}={_VALUE}[ \t]*(?=;|$)", re.ASCII)

    def find(self, cookie: str) -> tuple[str, str]:
        """Return the id and the secret of our session among these cookies; both are empty where there is none."""
        found = self._pattern.search(cookie)
        return (found[1], found[2]) if found else ("", "")

    def given(self, token: str, seconds: float, *, secure: bool) -> tuple[str, str]:
        """Return the header that gives a browser its session, for so long."""
        kept = f"{self.name}={token}; Path=/; Max-Age={math.floor(seconds)}; HttpOnly; SameSite=Strict"
        return "Set-Cookie", f"{kept}; Secure" if secure else kept
