"""What runs in a VM, talked to over SSH, by its agent or by its ports."""
