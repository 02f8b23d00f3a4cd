"""Disk builders: from a container image to a bootable disk, each kind behind one protocol."""
