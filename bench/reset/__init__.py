"""`poclab reset` against the same by hand, against libvirt's snapshots, and against other tools.

`overhead` measures the command alone, on VMs without an operating system, in a session. The rest
has real guests and runs in a qemu:///system in namespaces without an uplink: `ready` resets one VM
until SSH answers in it, `many` a lab of four, `disk` looks at what ten versions or snapshots take.
"""
