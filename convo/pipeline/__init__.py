"""The way from a committed job to a stored result; it knows nothing of HTTP."""
