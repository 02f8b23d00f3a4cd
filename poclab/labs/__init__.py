"""What is done to the VMs of labs: one module a command, and what they share."""
