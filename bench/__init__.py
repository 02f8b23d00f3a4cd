"""Measurements of poclab against the same done without it; see README.md."""
