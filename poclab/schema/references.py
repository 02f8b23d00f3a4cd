"""What one part of a lab file says about another: names that must exist, addresses that must fit.

Works on the tree and not on a validated model, so that these faults are found beside faults
of other kinds. What cannot be read is passed over here; the model complains of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from poclab.core.plaintext import shown
from poclab.schema import scalars
from poclab.schema.scalars import unknown
from poclab.schema.yaml_source import Entry, Fault, MappingNode, Node, Scalar, Sequence, path_text

T = TypeVar("T")
Path = tuple[str | int, ...]

READY_KINDS = ("ssh", "tcp", "agent")

# Looking for what was meant costs time; no more faults than these are shown anyway.
_MAX_SUGGESTIONS = 100


def check(root: Node) -> list[Fault]:
    """Find the faults of a lab file that lie between its parts."""
    checker = _Checker(root)
    checker.check_networks()
    for name, entry in checker.vms.items():
        checker.check_vm(("vms", name), entry.value)
    checker.check_defaults()
    checker.check_capacity()
    checker.check_cycles()
    return checker.faults


def _keys(node: Node | None) -> dict[str, Entry]:
    return dict(node.entries) if isinstance(node, MappingNode) else {}


def _value(node: Node | None, key: str) -> Node | None:
    entry = node.entries.get(key) if isinstance(node, MappingNode) else None
    return entry.value if entry else None


def _items(node: Node | None, path: Path) -> Iterator[tuple[Path, Node]]:
    for index, item in enumerate(node.items if isinstance(node, Sequence) else ()):
        yield (*path, index), item


def _read(reader: Callable[[Scalar], T], node: Node | None) -> T | None:
    """What a text means, or None when it cannot be read."""
    if not isinstance(node, Scalar) or node.empty:
        return None
    try:
        return reader(node)
    except ValueError:
        return None


class _Once:
    """Things that may stand in one place only."""

    def __init__(self) -> None:
        self._seen: dict[object, tuple[Path, int]] = {}

    def before(self, thing: object, path: Path, line: int) -> str:
        """Where the thing stood before, in words, or an empty string the first time."""
        first = self._seen.setdefault(thing, (path, line))
        return "" if first == (path, line) else f"{path_text(first[0])} (line {first[1]})"


class _Checker:
    """Goes through a lab file once and collects."""

    def __init__(self, root: Node) -> None:
        self.faults: list[Fault] = []
        self.vms = _keys(_value(root, "vms"))
        self._networks = _keys(_value(root, "networks"))
        self._defaults = _value(root, "defaults")
        self._cidrs = {
            name: _read(scalars.cidr, _value(entry.value, "cidr"))
            for name, entry in self._networks.items()
        }
        self._members = dict.fromkeys(self._networks, 0)
        self._ips, self._macs, self._ports = _Once(), _Once(), _Once()
        self._after: dict[str, list[tuple[str, Path, Scalar]]] = {}
        self._vm_names = list(self.vms)
        self._network_names = list(self._networks)
        self._suggestions = 0

    # --- networks -----------------------------------------------------------------------

    def check_networks(self) -> None:
        """See that no two networks share addresses."""
        known = [(cidr, name) for name, cidr in self._cidrs.items() if cidr is not None]
        # Sorted by first address, wider first: two networks overlap only if one holds the
        # other, and then the wider is the last one seen that has not ended yet.
        known.sort(key=lambda item: (item[0].network_address, item[0].prefixlen))
        wide: tuple[IPv4Network, str] | None = None
        for cidr, name in known:
            if wide is None or cidr.network_address > wide[0].broadcast_address:
                wide = (cidr, name)
                continue
            first, second = sorted((wide[1], name), key=self._network_names.index)
            node = _value(self._networks[second].value, "cidr")
            text = f"{self._cidrs[second]} overlaps the network {shown(first)}"
            self._fault(("networks", second, "cidr"), node, f"{text}, {self._cidrs[first]}")

    def check_capacity(self) -> None:
        """See that every network has an address for each of its VMs."""
        for name, cidr in self._cidrs.items():
            room = cidr.num_addresses - 3 if cidr else 0  # network, broadcast, the host's own
            if cidr and self._members[name] > room:
                node = _value(self._networks[name].value, "cidr")
                text = f"{cidr} has {room} addresses for {self._members[name]} VMs"
                self._fault(("networks", name, "cidr"), node, text)

    # --- VMs ----------------------------------------------------------------------------

    def check_vm(self, path: Path, vm: Node) -> None:
        """Check what one VM refers to."""
        name = str(path[-1])
        networks = _value(vm, "networks")
        self._check_nics((*path, "networks"), networks)
        if networks is None:
            for _, item in _items(_value(self._defaults, "networks"), ()):
                self._join(item)
        self._check_disks((*path, "disks"), _value(vm, "disks"))
        self._check_warm((*path, "warm"), vm)
        self._check_ports((*path, "ports"), _value(vm, "ports"))
        self._check_ready((*path, "ready"), _value(vm, "ready"))
        self._check_after(name, (*path, "after"), _value(vm, "after"))

    def check_defaults(self) -> None:
        """Check what the defaults refer to."""
        self._check_nics(("defaults", "networks"), _value(self._defaults, "networks"), joins=False)
        self._check_ready(("defaults", "ready"), _value(self._defaults, "ready"))

    def _join(self, name: Node | None) -> None:
        if isinstance(name, Scalar) and name.text in self._members:
            self._members[name.text] += 1

    def _check_nics(self, path: Path, nics: Node | None, *, joins: bool = True) -> None:
        seen = _Once()
        for at, item in _items(nics, path):
            name = item if isinstance(item, Scalar) else _value(item, "name")
            here = at if isinstance(item, Scalar) else (*at, "name")
            if not isinstance(name, Scalar) or name.empty:
                continue
            if name.text not in self._networks:
                self._unknown(here, name, "network", self._network_names)
            elif first := seen.before(name.text, here, name.line):
                self._fault(here, name, f"the network {shown(name.text)} stands twice, see {first}")
            elif joins:
                self._join(name)
            self._check_mac((*at, "mac"), _value(item, "mac"))
            self._check_ip((*at, "ip"), _value(item, "ip"), name.text)

    def _check_mac(self, path: Path, node: Node | None) -> None:
        mac = _read(scalars.mac, node)
        if mac and node and (first := self._macs.before(mac, path, node.line)):
            self._fault(path, node, f"{mac} is taken, see {first}")

    def _check_ip(self, path: Path, node: Node | None, network: str) -> None:
        ip = _read(scalars.ip, node)
        if ip is None or node is None:
            return
        cidr = self._cidrs.get(network)
        if cidr is not None and (why := _misplaced(ip, cidr)):
            self._fault(path, node, why)
        elif first := self._ips.before(ip, path, node.line):
            self._fault(path, node, f"{ip} is taken, see {first}")

    def _check_disks(self, path: Path, disks: Node | None) -> None:
        seen = _Once()
        for at, item in _items(disks, path):
            name, here = _value(item, "name"), (*at, "name")
            if isinstance(name, Scalar) and (first := seen.before(name.text, here, name.line)):
                self._fault(here, name, f"the disk {shown(name.text)} stands twice, see {first}")

    def _check_warm(self, path: Path, vm: Node) -> None:
        """A file system that the kept memory knows must not meet a disk that changed meanwhile."""
        warm = _value(vm, "warm")
        if _read(scalars.flag, warm) is not True:
            return
        for _, item in _items(_value(vm, "disks"), ()):
            if _read(scalars.flag, _value(item, "keep")) is True:
                self._fault(path, warm, "warm resets and a disk with keep: true exclude each other")
                return

    def _check_ports(self, path: Path, ports: Node | None) -> None:
        for at, item in _items(ports, path):
            forward = _read(scalars.forward, item)
            if forward and (first := self._ports.before(forward.host, at, item.line)):
                self._fault(at, item, f"port {forward.host} of the host is taken, see {first}")

    def _check_ready(self, path: Path, ready: Node | None) -> None:
        if not isinstance(ready, MappingNode):
            return
        kinds = [key for key in ready.entries if key in READY_KINDS]
        strange = [key for key in ready.entries if key not in (*READY_KINDS, "timeout")]
        if len(kinds) > 1:
            key = ready.entries[kinds[1]].key
            self._fault(path, key, f"only one of {' and '.join(kinds)} can be waited for")
        elif not kinds and not strange:  # else the strange key was meant to be one
            self._fault(path, ready, "needs one of ssh: true, tcp: PORT, agent: true")

    # --- order --------------------------------------------------------------------------

    def _check_after(self, vm: str, path: Path, after: Node | None) -> None:
        seen = _Once()
        edges = self._after.setdefault(vm, [])
        for at, item in _items(after, path):
            if not isinstance(item, Scalar) or item.empty:
                continue
            if item.text == vm:
                self._fault(at, item, "a VM cannot come after itself")
            elif item.text not in self.vms:
                self._unknown(at, item, "VM", self._vm_names)
            elif first := seen.before(item.text, at, item.line):
                self._fault(at, item, f"the VM {shown(item.text)} stands twice, see {first}")
            else:
                edges.append((item.text, at, item))

    def check_cycles(self) -> None:
        """See that no VM waits for itself by way of others; keeps its own stack."""
        done: set[str] = set()
        for start in self._after:
            trail: dict[str, Iterator[tuple[str, Path, Scalar]]] = {}
            if start not in done:
                trail[start] = iter(self._after[start])
            while trail:
                vm = next(reversed(trail))
                edge = next(trail[vm], None)
                if edge is None:
                    done.add(vm)
                    del trail[vm]
                elif edge[0] in trail:
                    self._cycle(list(trail), edge)
                elif edge[0] not in done:
                    trail[edge[0]] = iter(self._after[edge[0]])

    def _cycle(self, trail: list[str], edge: tuple[str, Path, Scalar]) -> None:
        circle = [*trail[trail.index(edge[0]) :], edge[0]]
        if len(circle) > 12:
            circle = [*circle[:6], "...", *circle[-6:]]
        steps = " after ".join(map(scalars.shown_plain, circle))
        self._fault(edge[1], edge[2], f"the order is a circle: {steps}")

    # --- faults -------------------------------------------------------------------------

    def _unknown(self, path: Path, node: Scalar, what: str, known: list[str]) -> None:
        self._suggestions += 1
        suggest = self._suggestions <= _MAX_SUGGESTIONS
        self._fault(path, node, unknown(what, node.text, known, suggest=suggest))

    def _fault(self, path: Path, node: Node | None, message: str) -> None:
        line, column = (node.line, node.column) if node else (1, 1)
        self.faults.append(Fault(line, column, path_text(path), message))


def _misplaced(ip: IPv4Address, cidr: IPv4Network) -> str:
    """Why a VM cannot have the address on the network, or an empty string."""
    if ip not in cidr:
        return f"{ip} is not in {cidr}"
    if ip in (cidr.network_address, cidr.broadcast_address):
        kind = "network" if ip == cidr.network_address else "broadcast"
        return f"{ip} is the {kind} address of {cidr}"
    if ip == cidr.network_address + 1:
        return f"{ip} is the host's own address on {cidr}"
    return ""
