"""The route ``GET /v1/audit-log``: who did what, newest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from convo.conversation.tenant import Reach
from convo.store.audit_pages import AuditFilter, AuditRow, read_audit_log
from convo.store.postgres import Postgres
from convo.web import queries
from convo.web.description import service_views
from convo.web.description.messages import Answer, encode
from convo.web.reads import Reads


class AuditLogRoute(Struct, frozen=True, kw_only=True):
    """The route, with what it needs."""

    postgres: Postgres
    reads: Reads
    rows_max: int
    default_has_indexes: Callable[[], bool]

    async def page(self, query: Mapping[str, str], reach: Reach) -> Answer:
        """Answer with a page of the audit log of the caller's tenant.

        Raises:
            Invalid: a filter, the limit or the cursor is not valid.
        """
        wanted = AuditFilter(
            action=queries.action_of(query),
            key_id=queries.id_of(query, "key_id"),
            conversation_id=queries.id_of(query, "conversation_id"),
            user_id=queries.id_of(query, "user_id"),
            since=queries.since_of(query),
            before=queries.cursor_of(query),
        )
        limit = queries.limit_of(query, self.rows_max)
        with self.reads.begin():
            found = await read_audit_log(
                self.postgres, reach.tenant, wanted, limit, default_has_indexes=self.default_has_indexes()
            )
        cursor = None if found.next_before is None else queries.cursor_after(found.next_before)
        view = service_views.AuditLogView(entries=tuple(map(_entry, found.rows)), next_cursor=cursor)
        return Answer(status=200, body=encode(view))


def _entry(row: AuditRow) -> service_views.AuditEntryView:
    return service_views.AuditEntryView(
        **{name: row[name] for name in _PLAIN},
        target=_hex(row["target"]),
        of_user=_hex(row["of_user"]),
        detail={} if row["detail"] is None else msgspec.json.decode(row["detail"]),
    )


_PLAIN = ("number", "at", "action", "key_id", "address", "target_kind")


def _hex(hashed: bytes | None) -> str | None:
    return None if hashed is None else hashed.hex()
