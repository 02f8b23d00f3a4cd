"""Ports on 127.0.0.1 for the VMs of a lab in qemu:///session. Pure.

A port belongs to the VM whose record names it, whether the VM runs or not; that record is the
reservation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from poclab.core.errors import UsageError
from poclab.model.host import ObservedVm
from poclab.model.lab import Forward, Lab, Vm

SSH = 22
FIRST, LAST = 22000, 29999  # below the ports that Linux gives to clients, 32768 and up


def first_port(pool: str, lab: str) -> int:
    """The port that a lab's VMs are given from on.

    Sessions of one machine know nothing of each other: spread over the range, two that start
    at the same moment hardly ever choose the same port.

    Args:
        pool: the directory of the session's storage pool, which no two sessions share.
        lab: the lab's name.
    """
    return FIRST + zlib.crc32(f"{pool}\0{lab}".encode()) % (LAST + 1 - FIRST)


class PortBook:
    """What the lab file asks for, and a port for SSH for each VM.

    Attributes:
        problems: what cannot be given, a line each.
    """

    def __init__(
        self,
        lab: Lab,
        vms: Iterable[ObservedVm],
        existing: Mapping[str, ObservedVm],
        port_free: Callable[[int], bool],
        pool: str = "",
    ) -> None:
        self._port_free = port_free
        self._existing = existing
        # What the lab's running VMs listen on is not free, and yet theirs.
        self._held = {
            forward.host for vm in existing.values() if vm.live for forward in vm.live.forwards
        }
        self.problems: list[str] = []
        self._owner = {
            forward.host: vm.record.path
            for vm in vms
            for forward in vm.record.forwards
            if vm.record.lab != lab.name
        }
        self._asked = {forward.host for vm in lab.vms for forward in vm.ports}
        self._taken = set(self._owner) | self._asked
        self._taken |= {forward.host for vm in existing.values() for forward in vm.record.forwards}
        first = first_port(pool, lab.name)
        self._candidates = chain(range(first, LAST + 1), range(FIRST, first))

    def of(self, vm: Vm) -> tuple[Forward, ...]:
        """The forwarded ports of a VM; what cannot be given goes to `problems`."""
        found = self._existing.get(vm.name)
        for forward in vm.ports:
            self._check(vm, forward)
        asked = {forward.guest for forward in vm.ports}
        needed = {SSH} | ({vm.ready.port} if vm.ready and vm.ready.kind == "tcp" else set())
        reserved = [self._reserved(guest, found) for guest in sorted(needed - asked)]
        return tuple(sorted([*vm.ports, *reserved]))

    def _check(self, vm: Vm, forward: Forward) -> None:
        port = forward.host
        owner = self._owner.get(port)
        if owner:
            self.problems.append(f"{vm.name}: port {port} of this host is {owner}'s")
        elif port not in self._held and not self._port_free(port):
            self.problems.append(f"{vm.name}: another program listens on port {port} of this host")

    def _reserved(self, guest: int, found: ObservedVm | None) -> Forward:
        before = found.record.forwards if found else ()
        for forward in before:
            ours = forward.guest == guest and forward.host not in self._asked
            if ours and (forward.host in self._held or self._port_free(forward.host)):
                return forward
        for port in self._candidates:
            if port not in self._taken and self._port_free(port):
                self._taken.add(port)
                return Forward(port, guest)
        raise UsageError("no port is left on 127.0.0.1 for SSH", fix="bring another lab down")
