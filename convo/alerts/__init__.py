"""Telling whoever is on call of what lasts: which conditions there are, when one is told, and how it gets there."""
