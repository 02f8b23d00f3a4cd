"""Everything that talks to libvirt, and what it says there."""
