"""The seed's table, for the peers that use SQLAlchemy."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from scripts.bench.peers.wire import ConversationEnded


class Base(DeclarativeBase):
    """The root of the tables."""


class ConversationEvent(Base):
    """One conversation; its log is null where it travels in the message."""

    __tablename__ = "conversation_event"

    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[str] = mapped_column(String(255), unique=True)
    user_id: Mapped[str] = mapped_column(String(255), index=True)
    bot_id: Mapped[str] = mapped_column(String(255), index=True)
    bot_name: Mapped[str | None] = mapped_column(String(255))
    bot_type: Mapped[str | None] = mapped_column(String(255))
    agent_tag: Mapped[str | None] = mapped_column(String(255))
    start_time: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    end_time: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    status: Mapped[str] = mapped_column(String(32), index=True, default="PENDING")
    conversation_log: Mapped[Any] = mapped_column(JSONB(none_as_null=True), nullable=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def row(ended: ConversationEnded, log: list[dict[str, str]] | None) -> ConversationEvent:
    """Make the row of a conversation."""
    return ConversationEvent(**ended.model_dump(exclude={"conversation_logs"}), conversation_log=log)
