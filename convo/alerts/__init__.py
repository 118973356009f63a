"""Alerts for whoever is on call: which there are, what causes them, when one is notified and how it is delivered."""
