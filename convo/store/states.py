"""What several statements on the job table have in common; it runs none of them."""

from __future__ import annotations

SUSPECT_AT = 2
"""Crashes of its process from which a job is leased only alone; the indexes of the schema hold this number, too."""

POISON_AT = SUSPECT_AT + 3
"""Crashes that bury a job: those that made it a suspect, and three with nothing beside it."""

UNLEASED = "lease_token = NULL, leased_at = NULL, leased_until = NULL, leased_by = NULL"
FREE = f"state = 'ready', {UNLEASED}"
NOT_PARKED = "waits_for = '', parked_since = NULL"
DEAD = f"""
               state = 'dead', {UNLEASED}, delayed = false, {NOT_PARKED}, ended_at = convo_now()
"""


def later(seconds: str) -> str:
    """Write the columns of a job that is due in so many ``seconds`` (a parameter's name); 0 keeps its place."""
    due = f"convo_now() + make_interval(secs => {seconds}::float8)"
    return f"""delayed = {seconds}::float8 > 0,
               available_at = CASE WHEN {seconds}::float8 > 0 THEN {due} ELSE available_at END"""
