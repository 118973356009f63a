"""Who finds what a conversation is owed: for each set of parts its analysts, as this process has them.

Open it to change which parts are asked for in one call, or what a process does with a part that it cannot find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convo.analysis import llm_parts
from convo.analysis.analyze import Analyst, Analysts, NoteFinding, Together
from convo.analysis.http_part import PartService
from convo.analysis.llm import Model
from convo.analysis.llm_chain import Models
from convo.conversation.model import Conversation, Finding, PartName
from convo.conversation.owed import DeclaredPart, Owed
from convo.errors import RemoteUnavailable

_DEFAULT_LLM = (DeclaredPart(name="questions", who="llm"), DeclaredPart(name="emotion", who="llm"))
# A file that samples by several parts makes many sets.
_KEPT_MAX = 1_000


class AnalystsOfSets:
    """The analysts of each set of parts. ``local`` and ``remote`` are those of the default parts."""

    def __init__(
        self,
        local: Analysts,
        remote: Analysts,
        *,
        model: Model | Models | None = None,
        services: Mapping[str, PartService] | None = None,
        parts_per_call: int = 8,
    ) -> None:
        self._local = local
        self._remote = remote
        self._model = model
        self._services = services or {}
        self._parts_per_call = parts_per_call
        default = {**local, **remote}
        if model is not None:
            default |= self._asked_together(model, _DEFAULT_LLM)
        self._of: dict[int, Analysts] = {0: default}

    def of(self, owed: Owed) -> Analysts:
        """Return the analysts of the parts that one conversation is owed."""
        found = self._of.get(owed.number)
        if found is None:
            if len(self._of) > _KEPT_MAX:
                self._of = {0: self._of[0]}
            found = self._of[owed.number] = self._made(list(owed.asked.values()))
        return found

    def able(self) -> list[str]:
        """List what parts may need that this process can find now: services that are out are left out."""
        able = [part.needs for part in self._services.values() if part.dependency.flows()]
        if self._model is not None and self._model.dependency.flows():
            able.append("llm")
        return [*able, "", *(["memory"] if "memories" in self._remote else [])]

    def _made(self, parts: Sequence[DeclaredPart]) -> Analysts:
        made: dict[PartName, Analyst] = {}
        of_model: dict[str, list[DeclaredPart]] = {}
        for part in parts:
            if part.who == "llm" and self._model is not None:
                of_model.setdefault(part.analyst or self._model.model, []).append(part)
            else:
                made[part.name] = self._one(part)
        if self._model is not None:
            for group in of_model.values():
                made |= self._asked_together(self._model, group)
        return {part.name: made[part.name] for part in parts}

    def _one(self, part: DeclaredPart) -> Analyst:
        if part.who == "local" and part.name in self._local:
            return self._local[part.name]
        if part.who == "memory" and part.name in self._remote:
            return self._remote[part.name]
        service = self._services.get(part.needs)
        return service.analyst if service is not None else missing_analyst(part)

    def _asked_together(self, model: Model | Models, parts: Sequence[DeclaredPart]) -> Analysts:
        made: dict[PartName, Analyst] = {}
        for several in _chunks(parts, self._parts_per_call):
            together = _call_of(model, several)
            for part in several:
                by = llm_parts.made_by(part, part.analyst or model.model)
                made[part.name] = Analyst(by=by, find=_alone(together, part.name), together=together)
        return made


def _chunks(parts: Sequence[DeclaredPart], most: int) -> list[Sequence[DeclaredPart]]:
    return [parts[start : start + most] for start in range(0, len(parts), most)]


def _call_of(model: Model | Models, parts: Sequence[DeclaredPart]) -> Together:
    async def find(conversation: Conversation, names: Sequence[PartName], note: NoteFinding) -> None:
        await model.find([part for part in parts if part.name in names], conversation, note)

    return Together(find=find)


class _Alone:
    def __init__(self, together: Together, name: PartName) -> None:
        self._together = together
        self._name = name

    async def __call__(self, conversation: Conversation) -> Finding:
        found: list[Finding] = []
        await self._together.find(conversation, [self._name], lambda _name, _by, finding: found.append(finding))
        return found[0]


def _alone(together: Together, name: PartName) -> _Alone:
    return _Alone(together, name)


def missing_analyst(part: DeclaredPart) -> Analyst:
    """Return an analyst that finds nothing: this process does not have what the part needs."""
    needs = part.needs or part.name

    async def find(_conversation: Conversation) -> Finding:
        raise RemoteUnavailable(needs, f"this process does not have the part {part.name} as it was declared then")

    return Analyst(by=needs, find=find, missing=needs)
