"""All that a client touches; it knows nothing of how a conversation is analysed."""
