"""A domain: define, start, stop, remove, and what it says of itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from xml.etree.ElementTree import Element, tostring

import libvirt

from poclab.core import events, safe_xml
from poclab.core.errors import NewerFormatError, PoclabError
from poclab.definitions import metadata
from poclab.definitions.xml import capture_xml
from poclab.model.host import ObservedVm, State
from poclab.model.record import VmRecord
from poclab.virt import agent, remote
from poclab.virt.block_jobs import Blocks
from poclab.virt.errors import GoneError, libvirt_errors

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: State.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: State.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: State.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: State.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: State.SHUTDOWN,
    libvirt.VIR_DOMAIN_SHUTOFF: State.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: State.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: State.SUSPENDED,
}
# The second: a domain that went off meanwhile has no running definition.
_NO_METADATA = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_OPERATION_INVALID)
_ASK_AGAIN = 1.0  # seconds; a guest that still boots does not hear the first request
_AGENT = "devices/channel/target[@name='org.qemu.guest_agent.0']"


class Guest:
    """One domain of poclab's."""

    def __init__(self, conn: libvirt.virConnect, domain: libvirt.virDomain) -> None:
        self._conn = conn
        self._domain = domain
        self.name: str = domain.name()
        # What is wrong with its metadata, as far as that was read; empty for nothing.
        self.fault = ""

    def is_vm(self) -> bool:
        """Whether the domain is a VM of a lab.

        Identity is the metadata; a clone that carries another domain's metadata is not ours.
        """
        record = self.record()
        return record is not None and record.domain == self.name

    @classmethod
    def define(cls, conn: libvirt.virConnect, xml: str, name: str) -> Guest:
        """Define a domain, or define it anew; a running one changes with its next start.

        Raises:
            PoclabError: libvirt refuses the definition.
        """
        events.step("define", domain=name)
        with libvirt_errors(f"domain {name} cannot be defined"):
            # Without VALIDATE libvirt drops what it does not know in silence.
            return cls(conn, conn.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE))

    # --- what it says ------------------------------------------------------------------

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return str(self._domain.UUIDString())

    def record(self, *, live: bool = False) -> VmRecord | None:
        """What its definition says (the running one's with `live`), None if not readable."""
        element = self._metadata(live=live)
        if element is None:
            return None
        try:
            return metadata.vm_record(element)
        except ValueError as error:
            events.debug(f"domain {self.name}: {error}")
            self.fault = "" if isinstance(error, NewerFormatError) else str(error)
            return None

    def observe(self) -> ObservedVm | None:
        """All of it, or None when it went away."""
        with contextlib.suppress(GoneError):
            record = self.record()
            if record is None:
                return None
            active = self.active()
            element = self._metadata(live=True) if active else None
            live = self.record(live=True) if active else None
            return ObservedVm(
                record,
                self.uuid,
                self.state(),
                live=live or (record if active else None),
                started=self._started(element) if element is not None else None,
            )
        return None

    def _started(self, element: Element) -> str | None:
        try:
            return metadata.started(element)
        except ValueError as error:
            self.fault = str(error)
            return None

    def state(self) -> State:
        """The state, a stop by I/O error told apart."""
        with libvirt_errors(f"{self.name} is not there"):
            state, reason = self._domain.state()
        if state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR:
            return State.IO_ERROR
        return _STATES.get(state, State.RUNNING)

    def active(self) -> bool:
        """Whether QEMU runs."""
        with libvirt_errors(f"{self.name} is not there"):
            return bool(self._domain.isActive())

    def saved(self) -> bool:
        """Whether its memory waits in a file for the next start (`virsh managedsave`)."""
        with libvirt_errors(f"{self.name} is not there"):
            return bool(self._domain.hasManagedSaveImage(0))

    def definitions(self) -> list[str]:
        """Its XML: as defined, and as it runs."""
        with libvirt_errors(f"{self.name} is not there"):
            defined = self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            running = self._domain.XMLDesc(0) if self._domain.isActive() else defined
        return [str(defined), str(running)]

    @property
    def autostart(self) -> bool:
        """Whether libvirt starts it with the host (`virsh autostart`)."""
        with libvirt_errors(f"{self.name} is not there"):
            return bool(self._domain.autostart())

    def set_autostart(self, on: bool) -> None:
        """Have libvirt start it with the host, or not."""
        with libvirt_errors(f"{self.name} is not there"):
            self._domain.setAutostart(int(on))

    def agent_connected(self) -> bool:
        """Whether the guest agent holds its channel open."""
        with libvirt_errors(f"{self.name} is not there"):
            target = safe_xml.parse(self._domain.XMLDesc(0)).find(_AGENT)
        return target is not None and target.get("state") == "connected"

    @property
    def blocks(self) -> Blocks:
        """Its system disk, to be worked on while it runs."""
        return Blocks(self._domain)

    def user_network(self) -> str:
        """QEMU's table of user-network connections (the monitor's `info usernet`)."""
        import libvirt_qemu

        flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        with libvirt_errors(f"{self.name} does not answer"):
            ask = libvirt_qemu.qemuMonitorCommand
            return str(remote.call("monitor", ask, self._domain, "info usernet", flags))

    # --- what is done to it ------------------------------------------------------------

    def start(self, *, fresh: bool, started: str) -> None:
        """Start it.

        Args:
            fresh: make the firmware variables anew from their template.
            started: the time to note in the running domain.

        Raises:
            PoclabError: it does not start.
        """
        events.step("start", domain=self.name)
        flags = libvirt.VIR_DOMAIN_START_RESET_NVRAM if fresh else 0
        with libvirt_errors(f"{self.name} does not start"):
            try:
                self._domain.createWithFlags(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                    raise
                if not self._domain.isActive():  # not merely started by another command
                    raise
        record = self.record()
        if record is not None:
            self.note_start(record, started)

    def forget_memory(self) -> None:
        """Delete the memory that waits for its next start, if any does; see `saved`."""
        if not self.saved():
            return
        events.step("saved memory", domain=self.name)
        with libvirt_errors(f"the memory of {self.name} cannot be deleted"):
            self._domain.managedSaveRemove(0)

    def note_start(self, record: VmRecord, started: str) -> None:
        """Write into the running domain, and there alone, what it is and since when it runs."""
        element = metadata.vm_element(record)
        element.set(metadata.STARTED, started)
        self._set_metadata(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def capture(self, memory: str, disks: Mapping[str, str]) -> None:
        """Keep memory and disks as they are this moment; the guest goes on on other disks.

        It stands still meanwhile. Memory and disks go together or not at all.

        Args:
            memory: the file for the memory.
            disks: the overlay that each disk goes on on, made beforehand, by the disk's name.

        Raises:
            PoclabError: it cannot be done; the guest goes on as it was.
        """
        events.step("capture", domain=self.name)
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        with libvirt_errors(f"the memory of {self.name} cannot be kept"):
            self._domain.snapshotCreateXML(capture_xml(memory, disks), flags)

    def wait_for_jobs(self, patience: float) -> None:
        """Wait until libvirt is done with what an ended command asked it to do with the guest.

        Raises:
            PoclabError: it is not after `patience` seconds.
        """
        limit = time.monotonic() + patience
        with libvirt_errors(f"{self.name} cannot be asked"):
            while self._domain.isActive() and self._busy():
                if time.monotonic() > limit:
                    raise PoclabError(f"{self.name} is busy", fix="run it again in a while")
                time.sleep(0.1)

    def snapshotting(self) -> bool:
        """Whether a snapshot is at work that an ended command asked for."""
        with libvirt_errors(f"{self.name} cannot be asked"):
            try:
                job = self._domain.jobStats(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
                    return False  # it went off
                raise
        return bool(job.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT)

    def _busy(self) -> bool:
        try:
            return bool(self._domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise
            return False  # it went off

    def set_clock(self, seconds: float) -> None:
        """Have the guest agent set the guest's clock; seconds since 1970, UTC.

        Raises:
            PoclabError: the agent does not.
        """
        whole = int(seconds)
        time_ = {"seconds": whole, "nseconds": int((seconds - whole) * 1e9)}
        what, fix = f"the clock of {self.name} was not set", "set it in the guest"
        with (
            libvirt_errors(f"the clock of {self.name} cannot be set"),
            agent.answering(self._domain, agent.ANSWER, what, fix),
        ):
            self._domain.setTime(time_, 0)

    def set_record(self, record: VmRecord) -> None:
        """Write the record into the persistent definition, nothing else."""
        events.step("record", domain=self.name)
        self._set_metadata(metadata.vm_element(record), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def set_live_record(self, record: VmRecord) -> None:
        """Write the record into the running definition, nothing else; it notes when it started."""
        events.step("live record", domain=self.name)
        before = self._metadata(live=True)
        element = metadata.vm_element(record)
        started = self._started(before) if before is not None else None
        if started:
            element.set(metadata.STARTED, started)
        self._set_metadata(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def resume(self) -> None:
        """Have a paused guest go on, and wake up one that suspended itself to memory."""
        events.step("resume", domain=self.name)
        with libvirt_errors(f"{self.name} does not go on"):
            if self.state() is State.SUSPENDED:
                self._domain.pMWakeup()
            else:
                self._domain.resume()

    def plug(self, mac: str, network: str) -> None:
        """Have a card of the running guest on another network; the guest keeps running.

        Args:
            mac: the card's MAC address.
            network: the libvirt network's name.

        Raises:
            PoclabError: there is no such card, or libvirt cannot.
        """
        events.step("plug", domain=self.name, network=network)
        with libvirt_errors(f"{self.name} cannot be connected to network {network}"):
            root = safe_xml.parse(self._domain.XMLDesc(0))
            for card in root.iterfind("devices/interface[source]"):
                address, source = card.find("mac"), card.find("source")
                if address is None or source is None or address.get("address") != mac:
                    continue
                # The port and bridge that it was on are libvirt's to find out.
                source.attrib.clear()
                source.set("network", network)
                text = tostring(card, encoding="unicode")
                self._domain.updateDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)
                return
        raise PoclabError(f"{self.name} has no network card {mac}")

    def power_off(self) -> None:
        """End QEMU at once; off already is fine."""
        events.step("power off", domain=self.name)
        with libvirt_errors(f"{self.name} cannot be stopped"):
            try:
                self._domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return
                if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                    raise

    def shut_down(self, patience: float, *, gently: bool = False) -> bool:
        """Ask the guest to shut down; end QEMU when it has not within `patience` seconds.

        Args:
            patience: seconds.
            gently: leave a guest alone that does not shut down, and say so.

        Returns:
            Whether it shut down by itself, or was off already.

        Raises:
            PoclabError: it still runs (`gently` only).
        """
        events.step("shut down", domain=self.name)
        if not self.active():
            return True
        if self.state() in (State.PAUSED, State.IO_ERROR):
            self.power_off()  # its processors stand still: it would never hear the request
            return False
        if self.state() is State.SUSPENDED:
            with contextlib.suppress(libvirt.libvirtError):
                self._domain.pMWakeup()  # asleep it would not hear it either
        begin = asked = time.monotonic()
        self._ask_to_shut_down()
        while time.monotonic() - begin < patience:
            if not self.active():
                return True
            if time.monotonic() - asked >= _ASK_AGAIN:
                asked = time.monotonic()
                self._ask_to_shut_down()
            time.sleep(0.1)
        if gently:
            raise PoclabError(
                f"{self.name} did not shut down within {patience:.0f} s",
                fix="shut it down from inside, then run the same command again",
            )
        events.warning(f"{self.name} did not shut down within {patience:.0f} s: powered off")
        self.power_off()
        return False

    def _ask_to_shut_down(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._domain.shutdown()

    def remove(self) -> None:
        """Undefine it with its firmware variables; gone already is fine."""
        events.step("undefine", domain=self.name)
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
        with contextlib.suppress(GoneError), libvirt_errors(f"{self.name} cannot be removed"):
            self._domain.undefineFlags(flags)

    def _metadata(self, *, live: bool) -> Element | None:
        flag = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        with libvirt_errors(f"the metadata of {self.name} cannot be read"):
            try:
                text = self._domain.metadata(
                    libvirt.VIR_DOMAIN_METADATA_ELEMENT, metadata.NAMESPACE, flag
                )
            except libvirt.libvirtError as error:
                # Nothing else means that there is none: what a VM stands on is garbage to
                # whoever takes a VM that cannot be asked for one that is not there.
                if error.get_error_code() not in _NO_METADATA:
                    raise
                return None
        return safe_xml.parse(text)

    def _set_metadata(self, element: Element, flag: int) -> None:
        with libvirt_errors(f"the metadata of {self.name} cannot be written"):
            self._domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                metadata.text(element),
                metadata.PREFIX,
                metadata.NAMESPACE,
                flag,
            )
