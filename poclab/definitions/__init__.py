"""What libvirt is told: domains, networks and the metadata they carry, as XML. Pure."""
