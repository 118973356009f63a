"""Several language models in a row: parts are asked of the first, and those that it does not find of the next one.

Open it to change when a fallback is asked. How a row of dependencies is judged stands in ``resilience/chain.py``.

A model that declines a conversation (a content filter) has answered. The next one is asked all the same, because
filters differ. Where that one does not answer, the refusal stands.
"""

from __future__ import annotations

from collections.abc import Sequence

from convo.analysis.analyze import NoteFinding
from convo.analysis.job_calls import calls_at_work
from convo.analysis.llm import Model
from convo.conversation.model import Conversation, Finding, PartName
from convo.conversation.owed import DeclaredPart
from convo.errors import RemoteDeclined, RemoteError
from convo.observe import log_records
from convo.resilience.chain import Chain


class Models:
    """The first model and its fallbacks, in the order in which they are asked."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = tuple(models)
        self.dependency = Chain(models[0].kind, [model.dependency for model in models])

    @property
    def model(self) -> str:
        """The first model's name."""
        return self._models[0].model

    async def find(self, parts: Sequence[DeclaredPart], conversation: Conversation, note: NoteFinding) -> None:
        """Ask for these parts, as ``Model.find``; what one of the models has found is not asked again.

        Raises:
            RemoteError: none of them found all that was left; it is about the parts that were not noted.
        """
        left = {part.name: part for part in parts}
        declined: dict[PartName, tuple[str, Finding, str]] = {}

        def noted(name: PartName, by: str, finding: Finding) -> None:
            reason = getattr(finding, "refused", "")
            if reason:
                declined.setdefault(name, (by, finding, reason))
            else:
                del left[name]
                note(name, by, finding)

        async def attempt(place: int, elsewhere: bool) -> None:  # noqa: FBT001  (as ``Chain`` calls it)
            model = self._models[place]
            await model.find(list(left.values()), conversation, noted, elsewhere=elsewhere)
            if left:
                raise RemoteDeclined(model.name, next(declined[name][2] for name in left))

        calls = calls_at_work()
        try:
            await self.dependency.ask(attempt, None if calls is None else calls.seq)
        except RemoteError as error:
            for name in [name for name in left if name in declined]:
                by, finding, reason = declined[name]
                if not isinstance(error.asked[-1], RemoteDeclined):
                    log_records.part_refused(conversation_id=conversation.conversation_id, part=name, reason=reason)
                note(name, by, finding)
                del left[name]
            if left:
                raise
