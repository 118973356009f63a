"""Finds the parts of an analysis (questions, emotion, memories) in one conversation."""
