"""What the pool holds: versions, marks, parked disks and warm states, and how they are recorded."""
