"""What a conversation is: pure rules and values; no I/O, no clock, no trio."""
