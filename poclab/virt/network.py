"""A lab network on a system daemon: define, reserve addresses, remove."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from ipaddress import IPv4Address

import libvirt

from poclab.core import events, safe_xml
from poclab.definitions.xml import host_xml
from poclab.model.host import ObservedNetwork
from poclab.model.record import HostEntry, NetworkRecord
from poclab.virt.errors import GoneError, libvirt_errors


class LabNetwork:
    """One lab network."""

    def __init__(
        self, conn: libvirt.virConnect, network: libvirt.virNetwork, record: NetworkRecord
    ) -> None:
        self._conn = conn
        self._network = network
        self.record = record

    @classmethod
    def define(cls, conn: libvirt.virConnect, xml: str, record: NetworkRecord) -> LabNetwork:
        """Define a network and start it, now and with the host.

        Raises:
            PoclabError: libvirt refuses it.
        """
        events.step("define network", network=record.libvirt_name)
        with libvirt_errors(f"network {record.libvirt_name} cannot be made"):
            flags = libvirt.VIR_NETWORK_DEFINE_VALIDATE
            network = conn.networkDefineXMLFlags(xml, flags)
        made = cls(conn, network, record)
        try:
            made.start()
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):
                network.undefine()
            raise
        return made

    def observe(self) -> ObservedNetwork:
        """All that the planner wants to know of it."""
        active = self.active
        connected = self.connected() if active else frozenset()
        return ObservedNetwork(self.record, active, tuple(self.reservations()), connected)

    @property
    def active(self) -> bool:
        """Whether its bridge is there."""
        with libvirt_errors(f"network {self.record.libvirt_name} is not there"):
            return bool(self._network.isActive())

    def start(self) -> None:
        """Start it, now and with the host."""
        events.step("start network", network=self.record.libvirt_name)
        with libvirt_errors(f"network {self.record.libvirt_name} does not start"):
            if not self._network.isActive():
                self._network.create()
            self._network.setAutostart(1)

    def reserve(self, wanted: Iterable[HostEntry]) -> None:
        """Make exactly these reservations, live."""
        desired = {entry.mac: entry for entry in wanted}
        present = {entry.mac: entry for entry in self.reservations()}
        for mac, entry in present.items():
            if desired.get(mac) != entry:
                self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, entry)
        for mac, entry in desired.items():
            if present.get(mac) != entry:
                self._update(libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, entry)

    def reservations(self) -> list[HostEntry]:
        """The reservations there are."""
        with libvirt_errors(f"network {self.record.libvirt_name} is not there"):
            xml = self._network.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
        hosts = safe_xml.parse(xml).iterfind("ip/dhcp/host")
        found = []
        for item in hosts:
            with contextlib.suppress(ValueError):  # none of poclab's: somebody added it
                ip = IPv4Address(item.get("ip", ""))
                found.append(HostEntry(item.get("mac", ""), item.get("name", ""), ip))
        return found

    def connected(self) -> frozenset[str]:
        """The MAC addresses of the cards that are plugged into its bridge.

        libvirt forgets a network's ports when it is stopped; guests that go on running meanwhile
        have no port, and no cable, after its next start.
        """
        with libvirt_errors(f"network {self.record.libvirt_name} is not there"):
            ports = self._network.listAllPorts(0)
        found: set[str] = set()
        for port in ports:
            with contextlib.suppress(libvirt.libvirtError):  # it went away meanwhile
                mac = safe_xml.parse(port.XMLDesc(0)).find("mac")
                if mac is not None:
                    found.add(mac.get("address", "").lower())
        return frozenset(found)

    def remove(self) -> None:
        """Stop it and forget it; gone already is fine."""
        events.step("remove network", network=self.record.libvirt_name)
        with (
            contextlib.suppress(GoneError),
            libvirt_errors(f"network {self.record.libvirt_name} cannot be removed"),
        ):
            if self._network.isActive():
                self._network.destroy()
            self._network.undefine()

    def _update(self, command: int, entry: HostEntry) -> None:
        events.step("reserve", network=self.record.libvirt_name, ip=str(entry.ip))
        flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
        if self._network.isActive():
            flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
        section = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
        with libvirt_errors(f"address {entry.ip} cannot be reserved"):
            self._network.update(command, section, -1, host_xml(entry), flags)
