"""The connection to a host, and what poclab finds on it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, tostring

import libvirt

from poclab.core import events, files, paths, safe_xml
from poclab.core.errors import NewerFormatError, PoclabError, UsageError
from poclab.core.plaintext import plain, shown
from poclab.definitions import metadata
from poclab.definitions.domain import STAND_IN, stood_in_for
from poclab.definitions.profiles import HostTraits
from poclab.definitions.xml import DomainSpec, restored_xml
from poclab.model.host import Foreign, ObservedVm, State
from poclab.model.record import NetworkRecord, VmRecord
from poclab.model.version_volumes import bases
from poclab.model.vm_volumes import data_volume
from poclab.virt import kvm, remote
from poclab.virt.disk_users import Usage
from poclab.virt.domain import Guest
from poclab.virt.errors import GoneError, libvirt_errors
from poclab.virt.network import LabNetwork
from poclab.virt.pool_local import LocalPool
from poclab.virt.pool_setup import PoolSetup, directory_access
from poclab.virt.pool_stream import StreamPool

_URI_LENGTH = 200  # characters of a URI that messages show

# Without this libvirt prints every error to stderr as well as raising it.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Host:
    """A libvirt host."""

    def __init__(self, conn: libvirt.virConnect, accel: str = "auto") -> None:
        self.conn = conn
        with libvirt_errors("libvirt does not answer"):
            self.uri: str = conn.getURI()
        self._accel = accel
        # Domains whose metadata `vms` last found damaged, and networks `networks` did: by name,
        # with what is wrong.
        self.damaged_domains: dict[str, str] = {}
        self.damaged_networks: dict[str, str] = {}

    @property
    def session(self) -> bool:
        """Whether this is a user's own daemon (no bridges, no root)."""
        return urlsplit(self.uri).path.endswith("/session")

    @property
    def local(self) -> bool:
        """Whether the daemon runs on this host."""
        return not urlsplit(self.uri).netloc

    @cached_property
    def traits(self) -> HostTraits:
        """What the design of a domain depends on."""
        if denied := self.kvm_denied():
            slow = "so libvirt probes QEMU again and again, and each step takes seconds more"
            events.warning(f"{denied}, {slow}: run `{kvm.REPAIR}`")
        return HostTraits(session=self.session, kvm=self._kvm(), owner=f"{os.getuid()}")

    def close(self) -> None:
        """End the connection."""
        remote.close(self.conn)

    # --- acceleration ----------------------------------------------------------------

    def _kvm(self) -> bool:
        if self._accel == "tcg":
            return False
        reason = self._kvm_unusable()
        if not reason:
            return True
        if self._accel == "kvm":
            raise PoclabError(
                "KVM cannot be used on this host", why=reason, fix="use --accel auto or tcg"
            )
        events.warning(f"no KVM: guests are emulated and slow ({reason})")
        return False

    def _kvm_unusable(self) -> str:
        """Why KVM cannot be used, or an empty string.

        That libvirt lists it proves little: a /dev/kvm without the processor's virtualization
        behind it is listed too, and its domains hang. So the processor is asked as well, in the
        way virt-host-validate does.
        """
        listed = {
            item.get("type")
            for guest in self._capabilities.iterfind("guest")
            if guest.findtext("os_type") == "hvm"
            for item in guest.iterfind("arch[@name='x86_64']/domain")
        }
        if "kvm" not in listed:
            return "libvirt does not offer it: /dev/kvm is missing or not accessible"
        if self.local and not cpu_virtualizes(Path("/proc/cpuinfo").read_text()):
            return "the processor has neither vmx nor svm"
        return ""

    def qemu_user(self) -> tuple[int, int] | None:
        """The user and group ID that a system daemon runs QEMU as; None where it runs as we do.

        It is the label that libvirt's driver for ordinary ownership (`dac`) gives to processes
        (formatcaps.html, user and group in qemu.conf): `+UID:+GID`.
        """
        for model in self._capabilities.iterfind("host/secmodel[model='dac']"):
            user, _, group = model.findtext("baselabel[@type='kvm']", "").partition(":")
            with contextlib.suppress(ValueError):
                return int(user), int(group)
        return None

    def kvm_denied(self) -> str:
        """Say why QEMU may not open /dev/kvm on this host, or an empty string."""
        return kvm.denied(self.qemu_user()) if self.local and not self.session else ""

    @cached_property
    def runs_guests_with(self) -> str:
        """What the memory of a guest depends on: QEMU, libvirt and the processor."""
        with libvirt_errors("libvirt does not tell its version"):
            versions = f"{self.conn.getVersion()} {self.conn.getLibVersion()}"
        cpu = deepcopy(self._capabilities.find("host/cpu"))
        for counter in cpu.findall("counter") if cpu is not None else ():
            cpu.remove(counter)  # type: ignore[union-attr]  # the clock's rate is measured
        return f"{versions} {tostring(cpu, encoding='unicode') if cpu is not None else ''}"

    @cached_property
    def _capabilities(self) -> Element:
        """The host's capabilities, asked for once: libvirt takes milliseconds for them."""
        with libvirt_errors("libvirt does not tell the host's capabilities"):
            return safe_xml.parse(self.conn.getCapabilities())

    # --- pool ------------------------------------------------------------------------

    @cached_property
    def pool(self) -> LocalPool | StreamPool:
        """The storage pool, made on first use.

        Raises:
            PoclabError: it cannot be made or started, or a pool of that name is not ours.
        """
        return PoolSetup(self.conn, self.uri, self.session, self.local, self.readers).opened()

    def readers(self) -> int | None:
        """The ID of the group that QEMU runs with; None where it runs as we do."""
        user = None if self.session else self.qemu_user()
        return user[1] if user else None

    @property
    def directory_access(self) -> tuple[int, int | None]:
        """The mode and the group's ID that the pool's directory should have."""
        return directory_access(self.readers())

    # --- domains and networks ----------------------------------------------------------

    def guests(self) -> list[Guest]:
        """All domains that are poclab's, by name."""
        return sorted(self._scan()[0], key=lambda guest: guest.name)

    def _scan(self) -> tuple[list[Guest], list[Guest]]:
        return remote.together(self.conn, "the domains", self._scanned)

    def _scanned(self) -> tuple[list[Guest], list[Guest]]:
        with libvirt_errors("the domains cannot be listed"):
            domains = self.conn.listAllDomains(0)
        ours: list[Guest] = []
        others: list[Guest] = []
        for domain in domains:
            with contextlib.suppress(GoneError):  # it went away meanwhile
                guest = Guest(self.conn, domain)
                (ours if guest.is_vm() else others).append(guest)
        return ours, others

    def vms(self) -> list[ObservedVm]:
        """All VMs, by lab and name."""
        return remote.together(self.conn, "the VMs", self._observed)

    def _observed(self) -> list[ObservedVm]:
        ours, others = self._scan()
        found = [vm for guest in ours if (vm := guest.observe())]
        all_ = (*ours, *others)
        self.damaged_domains = {guest.name: guest.fault for guest in all_ if guest.fault}
        known = {guest.name for guest in ours}
        found += [
            ObservedVm(record, stood_in_for(guest.uuid), State.SHUTOFF)
            for guest, record in _stand_ins(others)
            if record.domain not in known  # it is about to be defined anew
        ]
        return sorted(found, key=lambda vm: (vm.record.lab, vm.record.name))

    def networks(self) -> list[LabNetwork]:
        """All lab networks, by name; none in qemu:///session."""
        return self._scan_networks()[0]

    def _scan_networks(self) -> tuple[list[LabNetwork], list[str]]:
        if self.session:
            return [], []
        return remote.together(self.conn, "the networks", self._scanned_networks)

    def _scanned_networks(self) -> tuple[list[LabNetwork], list[str]]:
        with libvirt_errors("the networks cannot be listed"):
            networks = self.conn.listAllNetworks(0)
        ours: list[LabNetwork] = []
        others: list[str] = []
        self.damaged_networks = {}
        for network in networks:
            with contextlib.suppress(libvirt.libvirtError):
                record = self._network_record(network)
                if record and record.libvirt_name == network.name():
                    ours.append(LabNetwork(self.conn, network, record))
                else:
                    others.append(network.name())
        return sorted(ours, key=lambda item: item.record.libvirt_name), others

    def _network_record(self, network: libvirt.virNetwork) -> NetworkRecord | None:
        element = metadata.find(network.XMLDesc(0), "network")
        try:
            return None if element is None else metadata.network_record(element)
        except NewerFormatError:
            return None
        except ValueError as error:
            self.damaged_networks[network.name()] = str(error)
            return None

    def foreign(self) -> Foreign:
        """What is not poclab's, and the volumes that are in use and in no record.

        Raises:
            PoclabError: libvirt does not tell.
        """
        ours, others = self._scan()
        usage = Usage(self.conn, self.pool.directory, local=self.local)
        volumes: dict[str, str] = {}
        for guest in (*ours, *others):
            with contextlib.suppress(GoneError):
                recorded = _recorded(guest) if guest in ours else set()
                for name in usage.of(guest.definitions()) - recorded:
                    volumes[name] = guest.name
        return Foreign(
            frozenset(guest.name for guest in others),
            frozenset(self._scan_networks()[1]),
            volumes,
        )

    def guest(self, record: VmRecord) -> Guest:
        """The domain of a VM.

        Raises:
            GoneError: it is not there.
        """
        with libvirt_errors(f"{record.path} is not there"):
            return Guest(self.conn, self.conn.lookupByName(record.domain))

    def stand_ins(self, lab: str) -> list[tuple[Guest, VmRecord]]:
        """The domains that stand in for VMs of a lab, each with what it knows of its VM."""
        return [found for found in _stand_ins(self._scan()[1]) if found[1].lab == lab]

    def network(self, lab: str, name: str) -> LabNetwork:
        """A lab network.

        Raises:
            PoclabError: it is not there.
        """
        for found in self.networks():
            if (found.record.lab, found.record.name) == (lab, name):
                return found
        raise PoclabError(
            f"network {lab}.{name} is not there", fix=f"`poclab up {lab}` makes it again"
        )

    def network_up(self, lab: str, name: str) -> bool:
        """Whether a lab network's bridge is up on the very host this program runs on."""
        if not self.local or self.session:
            return False
        with contextlib.suppress(PoclabError):
            return self.network(lab, name).active
        return False

    def settle(self) -> None:
        """Have libvirt's own listings show what was done to the pool."""
        self.pool.refresh()

    def define_network(self, xml: str, record: NetworkRecord) -> LabNetwork:
        """Define a network and start it."""
        return LabNetwork.define(self.conn, xml, record)

    def define_guest(self, xml: str, name: str) -> Guest:
        """Define a domain, or define it anew."""
        return Guest.define(self.conn, xml, name)

    def restore(self, memory: str, spec: DomainSpec) -> Guest:
        """Bring a guest back from its memory, standing still; its domain must be defined and off.

        Args:
            memory: the volume of its memory.
            spec: the domain, with the disks that it is to go on on.

        Raises:
            PoclabError: libvirt or QEMU cannot.
        """
        events.step("restore", domain=spec.name)
        path = self.pool.path(memory)
        with libvirt_errors(f"{spec.name} cannot be brought back from its memory"):
            saved = self.conn.saveImageGetXMLDesc(path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
            xml = restored_xml(saved, spec)
            self.conn.restoreFlags(path, xml, libvirt.VIR_DOMAIN_SAVE_PAUSED)
            return Guest(self.conn, self.conn.lookupByName(spec.name))

    def drop_console_log(self, record: VmRecord) -> None:
        """Delete the serial console's copy, and its older parts, where this user may."""
        if not self.local:
            return
        path = Path(self.console_log(record))
        # virtlogd renames a file that is full to NAME.0, that to NAME.1 and so on (max_size and
        # max_backups in virtlogd.conf).
        ours = re.compile(re.escape(path.name) + r"(\.[0-9]+)?")
        with contextlib.suppress(OSError):
            for each in list(path.parent.iterdir()):
                if ours.fullmatch(each.name):
                    with contextlib.suppress(OSError):
                        each.unlink()

    def console_log(self, record: VmRecord) -> str:
        """The file that the VM's serial console is copied to."""
        if self.session:
            directory = paths.private_dir(paths.state_dir() / "console")
            return str(files.below(directory, f"{record.domain}.log"))
        return f"/var/log/libvirt/qemu/{record.domain}.console.log"


def _recorded(guest: Guest) -> set[str]:
    """The volumes that a VM stands on by its records, defined and running."""
    records = [record for live in (False, True) if (record := guest.record(live=live))]
    return {
        name
        for record in records
        for name in (
            record.overlay,
            *bases(record),
            *(data_volume(record, disk) for disk in record.disks),
            *(item.volume for item in record.frozen),
        )
    }


def _stand_ins(others: Iterable[Guest]) -> Iterator[tuple[Guest, VmRecord]]:
    for guest in others:
        record = None
        if guest.name.endswith(STAND_IN):
            with contextlib.suppress(GoneError):  # another lab's, whose VM is back meanwhile
                record = guest.record()
        if record and guest.name == f"{record.domain}{STAND_IN}":
            yield guest, record


def cpu_virtualizes(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo names hardware virtualization (Intel vmx, AMD svm)."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            return not {"vmx", "svm"}.isdisjoint(line.split())
    return False


@contextmanager
def connect(uri: str | None = None, accel: str = "auto") -> Iterator[Host]:
    """Connect to a host.

    Args:
        uri: a libvirt URI; None leaves the choice to libvirt (LIBVIRT_DEFAULT_URI, then
            qemu:///system for root and qemu:///session for others).
        accel: "auto", "kvm" or "tcg".

    Raises:
        PoclabError: there is no libvirt, or no permission.
    """
    target = uri or _default_uri()
    asked = target or os.environ["LIBVIRT_DEFAULT_URI"]
    try:
        conn = remote.connect(target, far=not asked.partition("://")[2].startswith("/"))
    except libvirt.libvirtError as error:
        raise _connection_error(uri, error) from error
    host = Host(conn, accel)
    try:
        if urlsplit(host.uri).scheme.split("+")[0] not in ("qemu", "test"):
            raise UsageError(
                f"{shown(host.uri, _URI_LENGTH)} is no QEMU host",
                fix="use qemu:///system or qemu:///session",
            )
        yield host
    finally:
        host.close()


def _default_uri() -> str | None:
    if os.environ.get("LIBVIRT_DEFAULT_URI"):
        return None
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


def _connection_error(uri: str | None, error: libvirt.libvirtError) -> PoclabError:
    target = uri or os.environ.get("LIBVIRT_DEFAULT_URI") or _default_uri() or "libvirt"
    text = plain(str(error))
    fix = "`poclab doctor` checks the host"
    if os.geteuid() == 0 and target == "qemu:///session":
        fix = "root has no session daemon: use -c qemu:///system, or an ordinary user"
    # Before the socket: "Failed to connect socket to '...': Permission denied".
    elif "authentication" in text or "Permission denied" in text:
        fix = "join the group libvirt (`usermod -aG libvirt USER`), or use -c qemu:///session"
    elif "Failed to connect socket" in text or "No such file" in text:
        fix = "start libvirt: `systemctl start libvirtd`, without systemd `libvirtd -d`"
    elif "no connection driver" in text or "Cannot find" in text:
        fix = "install libvirt-daemon-system (Debian, Ubuntu) or libvirt-daemon-kvm (Fedora)"
    return PoclabError(f"cannot connect to {shown(target, _URI_LENGTH)}", why=text, fix=fix)
