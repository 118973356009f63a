"""The actions that the audit log notes (``store/audit_log.py``), with what a row of each means.

Open it to add an action. The handbook's table is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

AuditAction = Literal[
    "log_read",
    "retry",
    "acknowledge",
    "alert_acknowledged",
    "erase",
    "reanalyse",
    "promote",
    "key_made",
    "key_rotated",
    "key_revoked",
    "session_made",
    "session_ended",
    "restore",
    "scrub",
    "start",
    "reload",
    "webhook_made",
    "webhook_changed",
    "webhook_deleted",
]
AUDIT_ACTIONS: Mapping[AuditAction, str] = {
    "log_read": "The log of a conversation was read, as turns or as it was sent. A row for each request.",
    "retry": "A dead letter was made ready again, alone or with many others. A row for each dead letter.",
    "acknowledge": "A dead letter was marked as reviewed.",
    "alert_acknowledged": "Somebody acknowledged an alert. `detail` has its type, its component (null: all) and who.",
    "erase": "A conversation or a user was erased. Of a user there is a row for each batch of conversations.",
    "reanalyse": "Parts of a conversation are found again, and take the place of its results. `detail` has the parts.",
    "promote": "Results of a re-run took the place of the current ones. `detail` has the part, its version, how many "
    "conversations, and by how many points their scores moved. A row for each transaction and tenant.",
    "key_made": "A key was made. `detail` has its id, name and scopes.",
    "key_rotated": "A key was made that replaces another. `detail` has the ids of both.",
    "key_revoked": "A key was revoked. `detail` has its id.",
    "session_made": "A browser has signed in with a key (the row's). `detail` has the session's id.",
    "session_ended": "A browser has signed out, or `convo session revoke` has ended its session. `detail` has the ids "
    "of the session and its key.",
    "restore": "The database was put back to a backup. `detail` says when that was made, and its size, and whether "
    "it was done without erasing again what was erased since.",
    "scrub": "The tables were written anew, so that no file holds what was erased. `detail` has how many, and how many "
    "bytes they took before.",
    "start": "A process started. `detail` has the settings that differ from their defaults; of those that are or may "
    "hold secrets only the names.",
    "reload": "A process read its certificate and the keys of clients again (SIGHUP).",
    "webhook_made": "An endpoint for events was registered. `detail` has its id.",
    "webhook_changed": "An endpoint was changed, or got another secret. `detail` has its id.",
    "webhook_deleted": "An endpoint was removed. `detail` has its id.",
}
"""Each action that is noted, with what a row of it means."""
