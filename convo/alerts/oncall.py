"""Notifies the people of ``[oncall]``: who is on call, then the next one, then all, until somebody acknowledges.

Open it to change whom an alert reaches and when. It decides for the alerts of this process, of which the process that
leads has those of all. Who is on call stands in ``rotation``; what was acknowledged, in ``open_alerts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from convo.alerts.delivery import SinkQueue
from convo.alerts.formats import Notification
from convo.alerts.open_alerts import HeldAlert
from convo.alerts.rotation import in_order, on_call
from convo.alerts.rules import AlertKey, AlertLevel, Change
from convo.observe import log_records
from convo.settings import OncallSettings

_LAST_STEP = 2
"""The steps of an escalation: 0 who is on call, 1 the next one, 2 all."""


class OnCall:
    """Whom each lasting alert has reached, and whom it is to reach next."""

    def __init__(
        self,
        settings: OncallSettings,
        queues: Mapping[str, Sequence[SinkQueue]],
        utc_now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._utc_now = utc_now
        self._reached: dict[AlertKey, set[str]] = {}

    def step(
        self,
        key: AlertKey,
        level: AlertLevel,
        held: HeldAlert,
        now: float,
        make: Callable[[Change], Notification],
    ) -> None:
        """Notify whoever is to be notified of a lasting alert at ``now``, by ``trio.current_time()``, and was not."""
        mode = self._settings.paging(level)
        if mode == "nobody" or not held.known:
            return
        if key not in self._reached:
            # A process before this one has notified them.
            self._reached[key] = {name for step in range(held.step + 1) for name in self._people(mode, step)}
        if held.acknowledged is not None:
            return
        seconds, last = self._settings.escalate_seconds, _LAST_STEP if mode == "escalate" else 0
        step = min(last, int((now - held.since) // seconds)) if seconds else 0
        if step <= held.step:
            return
        people = self._people(mode, step)
        held.step = step
        self._reached[key].update(people)
        log_records.people_notified(type_=key[0], component=key[1], step=step, people=list(people))
        self._put(people, make("escalated" if step else "raised"))

    def changed(self, key: AlertKey, held: HeldAlert | None, message: Notification) -> None:
        """Pass on what became of an alert to those whom it has reached; while nobody acknowledges, it is repeated."""
        reached = self._reached.get(key)
        if not reached or message.change == "raised":
            return
        people = set(reached)
        if message.change == "lasting":
            if held is None or held.acknowledged is not None:
                return
            present = on_call(self._settings, self._utc_now())
            people |= {present} if present is not None else set()
            reached |= people
        self._put(sorted(people), message)

    def keep_only(self, keys: Iterable[AlertKey]) -> None:
        """Forget all other alerts: they are over, or another process has them."""
        kept = set(keys)
        self._reached = {key: people for key, people in self._reached.items() if key in kept}

    def _people(self, mode: str, step: int) -> tuple[str, ...]:
        order = in_order(self._settings, self._utc_now())
        if mode == "all" or step >= _LAST_STEP:
            return order
        return order[min(step, len(order) - 1) :][:1]

    def _put(self, people: Iterable[str], message: Notification) -> None:
        for name in people:
            for queue in self._queues.get(name, ()):
                queue.put(message)
