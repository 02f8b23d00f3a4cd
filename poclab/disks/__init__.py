"""Disk files: what they are, how they are made, copied, compared and compressed."""
