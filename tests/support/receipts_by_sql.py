"""Receipts for conversations that a test inserts by SQL: each conversation that the product stores has one."""

from __future__ import annotations

RECEIPTS = r"""
INSERT INTO receipt (seq, received_at, turns, id_hash, digest)
SELECT seq, received_at, turns, convo_id_hash('default', conversation_id), '\x02'::bytea || sha256(seq::text::bytea)
FROM conversation ORDER BY seq
"""
