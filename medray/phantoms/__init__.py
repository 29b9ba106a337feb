"""Synthetic bodies and the public layouts they are written in."""
