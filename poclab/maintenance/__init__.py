"""Keeping a host in order: checks and repairs, disk space, what is left over."""
