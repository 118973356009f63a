"""The way from a committed job to a stored result: lease it, analyse it, end it."""
