"""What poclab talks about: labs, versions, VMs and their volumes. Pure."""
