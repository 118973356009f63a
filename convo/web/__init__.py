"""The HTTP API: its routes, the checks before them, and its description.

It knows nothing of how a conversation is analysed.
"""
