"""Delivers events to the endpoints that were registered: the order of one endpoint, the attempts, and the courier."""
