"""The route ``POST /v1/conversations/{id}/reanalyse``: has an analysed conversation analysed again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from convo.conversation.model import PartName
from convo.conversation.tenant import Reach
from convo.settings import WebSettings
from convo.store.audit_log import Caller
from convo.web.description import views
from convo.web.description.messages import Answer, encode
from convo.web.door import RouteRequest
from convo.web.json_body import read_json_body

OrderAgain = Callable[[Reach, str, PartName | None, Caller], Awaitable[Sequence[PartName]]]


class ReanalyseRoute(Struct, frozen=True, kw_only=True):
    """The route, with what it needs; ``order`` has parts found again, and returns which."""

    settings: WebSettings
    order: OrderAgain

    async def reanalyse(self, conversation_id: str, request: RouteRequest, caller: Caller) -> Answer:
        """Have one part of a conversation found again, or all that it is owed.

        Raises:
            ConvoError: as ``single_reanalysis.SingleReanalyses.order``, or what was sent is not valid.
        """
        sent = await read_json_body(request, views.ReanalysisOrder, self.settings)
        parts = await self.order(request.reach, conversation_id, sent.part, caller)
        links = views.links(conversation_id)
        view = views.ReanalysisView(conversation_id=conversation_id, parts=tuple(parts), links=links)
        return Answer(status=202, body=encode(view), headers=[("Location", links.self)])
