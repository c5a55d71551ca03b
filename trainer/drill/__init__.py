"""Drills: break a real training on purpose, from outside, and see it heal."""
