"""The lease of a courier: one process at a time delivers, and another one takes over when it dies.

The process renews its lease, and names its token in every write. One that was stopped for longer than the lease changes
nothing any more, because another process has another token. Webhooks lease each endpoint, RabbitMQ its one row.
"""

from __future__ import annotations

LEASE_SECONDS = 20.0
"""What a process that dies delivered is taken over after this."""

# An earlier start on the same data folder is dead, because this process holds the folder's lock. A lease that ends
# later than it can was given before the database's clock was set back.
LEASABLE = """(split_part(leased_by, '.', 1) = split_part($1, '.', 1)
    OR leased_until IS NULL OR leased_until < convo_now()
    OR leased_until > convo_now() + make_interval(secs => $2 * 2))"""
"""The condition on rows that the process ``$1`` may lease for ``$2`` seconds, or has leased."""

LEASE = """
    leased_by = $1, leased_until = convo_now() + make_interval(secs => $2),
    lease_token = CASE WHEN leased_by = $1 AND leased_until > convo_now() THEN lease_token
                       ELSE nextval('webhook_token') END"""
"""What is set in them; a lease that is only renewed keeps its token."""
