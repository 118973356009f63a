"""The audit log: which actions are noted, and how a row is added, in the transaction of the action where there is one.

A row names who (a key, an address), what, of what, and when. It holds no text of a
conversation and no id of a conversation or a user: these stand as HMACs under the installation's key from the start, so
that an erasure has nothing to change here. ``audit_queue`` adds rows of what has no transaction, ``audit_pages`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from convo.audit_actions import AuditAction
from convo.conversation.identity import IdKind
from convo.conversation.tenant import DEFAULT, Tenant
from convo.store.installation_key import InstallationKey, read_installation_key
from convo.store.postgres import Connection


class Caller(Struct, frozen=True, kw_only=True):
    """Who did something: the id of the key that was shown, and the address as the limits of clients see it.

    Both are None for a command on the database and for the process itself.
    """

    key_id: str | None = None
    address: str | None = None


NO_CALLER = Caller()


class AuditTarget(Struct, frozen=True, kw_only=True):
    """What something was done to, by its id, and the user whose it is."""

    kind: IdKind
    id: str
    user_id: str


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One row that is to be added; ``detail`` is small and holds no text of a conversation.

    ``tenant`` is whose the target is; what concerns the whole installation stands with the default one.
    """

    action: AuditAction
    tenant: Tenant = DEFAULT
    caller: Caller = NO_CALLER
    target: AuditTarget | None = None
    detail: Mapping[str, Any] | None = None


async def append(connection: Connection, *entries: AuditEntry) -> None:
    """Add rows in the transaction of what they are about: they are stored if and only if that is."""
    if entries:
        await connection.execute(_APPEND, *await columns(connection, entries))


async def columns(connection: Connection, entries: Sequence[AuditEntry]) -> tuple[list[Any], ...]:
    """Return the values of the rows, column by column, as ``ARRAYS`` takes them."""
    key = await read_installation_key(connection) if any(entry.target for entry in entries) else None
    rows = [_row(entry, key) for entry in entries]
    return tuple(map(list, zip(*rows, strict=True)))


def _row(entry: AuditEntry, key: InstallationKey | None) -> tuple[Any, ...]:
    target, kind, of_user = None, None, None
    if entry.target is not None and key is not None:
        kind = entry.target.kind
        target = key.hmac_of(kind, entry.tenant.own(entry.target.id))
        of_user = key.hmac_of("user", entry.tenant.own(entry.target.user_id))
    detail = None if entry.detail is None else msgspec.json.encode(entry.detail).decode()
    caller = entry.caller
    return entry.action, caller.key_id, caller.address, kind, target, of_user, detail, entry.tenant.number


def restored(made_at: str, size_bytes: int, *, without_erasures: bool = False) -> str:
    """Return the SQL that notes a restore at its end, in its own transaction: in the database that was restored.

    A backup from before there was an audit log has no place for it.
    """
    # The time is of a form that cannot end the text; nothing else of the backup's own words stands in it.
    facts = {"made_at": made_at, "bytes": size_bytes} | ({"without_erasures": True} if without_erasures else {})
    detail = msgspec.json.encode(facts).decode().replace("'", "''")
    return f"""
DO $convo$
BEGIN
    IF to_regclass('public.audit_log') IS NOT NULL THEN
        INSERT INTO public.audit_log (action, detail) VALUES ('restore', '{detail}');
    END IF;
END
$convo$;
"""


COLUMNS = "action, key_id, address, target_kind, target, of_user, detail, tenant"
ARRAYS = "$1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::jsonb[], $8::smallint[]"
_APPEND = f"INSERT INTO audit_log ({COLUMNS}) SELECT {COLUMNS} FROM unnest({ARRAYS}) AS entry ({COLUMNS})"
