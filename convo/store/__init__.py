"""Everything durable; it knows nothing of HTTP or of how a conversation is analysed."""
