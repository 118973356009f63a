"""The handbook for operators and clients: pages in Markdown, with tables made from the code; see ``pages``."""

from __future__ import annotations

from convo.handbook.pages import page, title, topics

__all__ = ["page", "title", "topics"]
