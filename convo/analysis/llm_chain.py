"""Several language models in a row: each part is asked of the first, and of the next one where that fails.

Open it to change when a fallback is asked. How a row of dependencies is judged stands in ``resilience/chain.py``.

A model that declines a conversation (a content filter) has answered. The next one is asked all the same, because
filters differ. Where that one does not answer, the refusal stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from convo.analysis.analyze import AnsweredBy
from convo.analysis.job_calls import calls_at_work
from convo.analysis.llm import Model
from convo.analysis.remote import PartFinder
from convo.conversation.model import Conversation, PartName
from convo.errors import RemoteDeclined, RemoteError
from convo.observe import log_records
from convo.resilience.chain import Chain


class Models:
    """The first model and its fallbacks, in the order in which they are asked; ``by`` is the first one's."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = tuple(models)
        self.by = models[0].by
        self.dependency = Chain(models[0].kind, [model.dependency for model in models])

    @property
    def finders(self) -> Mapping[PartName, PartFinder]:
        """The parts of the first model; each finding says which one answered."""
        return {part: partial(self._find, part) for part in self._models[0].finders}

    async def _find(self, part: PartName, conversation: Conversation) -> AnsweredBy:
        declined: list[tuple[AnsweredBy, str]] = []

        async def attempt(place: int, elsewhere: bool) -> AnsweredBy:  # noqa: FBT001  (as ``Chain`` calls it)
            model = self._models[place]
            finding = await model.finders[part](conversation, elsewhere=elsewhere)
            answered = AnsweredBy(by=model.by, finding=finding)
            if finding.refused:
                declined.append((answered, finding.refused))
                raise RemoteDeclined(model.name, finding.refused)
            return answered

        calls = calls_at_work()
        try:
            return await self.dependency.ask(attempt, None if calls is None else calls.seq)
        except RemoteError as error:
            if not declined:
                raise
            first, reason = declined[0]
            if not isinstance(error.asked[-1], RemoteDeclined):
                log_records.part_refused(conversation_id=conversation.conversation_id, part=part, reason=reason)
            return first
