"""Conditions and columns that several statements on the job table share: above all, which jobs are due.

Open it to change when a job can be leased. It runs no statement.
"""

from __future__ import annotations

SUSPECT_AT = 2
"""From this many crashes of its process on, a job is leased only alone. The indexes of the schema repeat the number."""

POISON_AT = SUSPECT_AT + 3
"""Crashes that bury a job: those that made it a suspect, and three more with nothing beside it."""

COUNTED_MAX = 2_000
"""So many jobs are counted one by one: a count that reads every row takes longer the more there are."""

# Each condition repeats the one of an index (store/schema): only then does the planner use that index.
DUE = f"state = 'ready' AND NOT delayed AND crashes < {SUSPECT_AT}"
"""A job that can be leased beside others, unless what it ``waits_for`` is out (index job_due)."""
QUEUED = f"{DUE} AND waits_for = ''"
"""A due job that waits for nothing but a worker (in the order of its key job_due, by its age job_queued)."""
DELAYED = "state = 'ready' AND delayed"
"""A job that becomes due at ``available_at`` (index job_not_due)."""
SUSPECT = f"state = 'ready' AND NOT delayed AND crashes >= {SUSPECT_AT}"
"""A due job that is leased only alone (index job_not_due)."""
PARKED = "state = 'ready' AND waits_for <> ''"
"""A job that waits for a dependency, delayed or not (index job_apart)."""
PARKED_SINCE = "state = 'ready' AND parked_since IS NOT NULL"
"""The same jobs, by the time of their parking (index job_parked_since)."""

# OFFSET 0: the planner must look each one up. Joined freely, it reads all conversations that there are.
THEIRS = """CROSS JOIN LATERAL (
    SELECT conversation_id, user_id, bot_id, tenant FROM conversation WHERE seq = job.seq OFFSET 0) AS c"""
"""The conversations of the rows of ``job``, one look-up for each."""

UNLEASED = "lease_token = NULL, leased_at = NULL, leased_until = NULL, leased_by = NULL, lease_seconds = NULL"
FREE = f"state = 'ready', {UNLEASED}"
NOT_PARKED = "waits_for = '', parked_since = NULL"
DEAD = f"""
               state = 'dead', {UNLEASED}, delayed = false, {NOT_PARKED}, ended_at = convo_now()
"""


def later(seconds: str) -> str:
    """Return the columns of a job that is due in ``seconds`` (the name of a parameter); 0 keeps its place."""
    due = f"convo_now() + make_interval(secs => {seconds}::float8)"
    return f"""delayed = {seconds}::float8 > 0, delayed_at = convo_now(),
               available_at = CASE WHEN {seconds}::float8 > 0 THEN {due} ELSE available_at END"""
