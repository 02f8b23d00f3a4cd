"""The system disk of a domain, and what libvirt does to it while the domain runs.

An external snapshot puts a new overlay on top, a block copy followed by a pivot has the domain go
on with another file, a block commit merges the overlay down again. libvirt keeps both definitions
of the domain, the live and the persistent one, up to date with each of these
(https://libvirt.org/html/libvirt-libvirt-domain.html#virDomainBlockCopy and its neighbours).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from poclab.core import events, safe_xml
from poclab.core.errors import PoclabError
from poclab.virt import agent
from poclab.virt.errors import libvirt_errors

_STALLED = 600.0  # seconds in which a copy must get on; a disk that hangs may come back


@dataclass(frozen=True)
class SystemDisk:
    """A domain's system disk, as one of its definitions has it.

    Attributes:
        target: its name in the domain ("vda").
        chain: its files, the top first; the top alone where libvirt did not note the others.
        job: whether a block copy or commit is at work.
        ready: whether that has caught up and can be pivoted to.
        others: the names of the domain's other disks.
    """

    target: str
    chain: tuple[str, ...]
    job: bool
    ready: bool
    others: tuple[str, ...]


def system_disk(xml: str) -> SystemDisk | None:
    """Read a domain's system disk: the one that is booted from.

    Args:
        xml: the domain's XML, live or not.

    Returns:
        The disk, or None when the domain boots from no file.
    """
    disks = safe_xml.parse(xml).findall("devices/disk")
    names = [_attribute(disk, "target", "dev") for disk in disks]
    for disk, name in zip(disks, names, strict=True):
        chain = tuple(_chain(disk))
        if disk.find("boot[@order='1']") is None or not chain:
            continue
        mirror = disk.find("mirror")
        ready = mirror is not None and mirror.get("ready") == "yes"
        others = tuple(other for other in names if other != name)
        return SystemDisk(name, chain, mirror is not None, ready, others)
    return None


def _chain(level: Element | None) -> list[str]:
    path = _attribute(level, "source", "file") if level is not None else ""
    return [path, *_chain(level.find("backingStore"))] if path and level is not None else []


def _attribute(element: Element, tag: str, name: str) -> str:
    found = element.find(tag)
    return found.get(name, "") if found is not None else ""


class Blocks:
    """The system disk of one domain, to be worked on while that runs."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain
        self._name: str = domain.name()

    def disk(self) -> SystemDisk | None:
        """The disk as it is now: as it runs, or as defined when the domain is off."""
        with libvirt_errors(f"{self._name} is not there"):
            return system_disk(self._domain.XMLDesc(0))

    def agent_silence(self) -> str:
        """Why the guest agent does not answer, or an empty string when it does."""
        return agent.silence(self._domain)

    def snapshot(self, path: str, *, quiesce: bool) -> None:
        """Have all that is written from now on go to an overlay; the others stay as they are.

        Args:
            path: a new overlay on the disk.
            quiesce: have the guest agent write everything out and hold the file systems still
                for that moment.

        Raises:
            SilentError: the guest agent did not hold them still in time.
            PoclabError: it cannot be done; then the disk is as before unless `disk` says so.
        """
        disk = self._there()
        root = Element("domainsnapshot")
        listed = SubElement(root, "disks")
        system = SubElement(listed, "disk", {"name": disk.target, "snapshot": "external"})
        system.append(_format())
        SubElement(system, "source", {"file": path})
        for name in disk.others:
            SubElement(listed, "disk", {"name": name, "snapshot": "no"})
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        text = tostring(root, encoding="unicode")
        events.step("snapshot", domain=self._name)
        with libvirt_errors(f"the disk of {self._name} cannot be held still"):
            if quiesce:
                self._quiesced(text, flags | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE)
            else:
                self._domain.snapshotCreateXML(text, flags)

    def _quiesced(self, text: str, flags: int) -> None:
        what = f"{self._name} did not hold its file systems still within {agent.FREEZE} s"
        fix = "restart the guest agent in it, or go without: --no-quiesce, or --shutdown"
        try:
            with agent.answering(self._domain, agent.FREEZE, what, fix):
                self._domain.snapshotCreateXML(text, flags)
        except agent.SilentError:
            agent.thaw(self._domain)  # libvirt gave up, the agent may be at it still
            raise

    def move(self, path: str) -> None:
        """Have the domain go on with another file that what is on top is copied to.

        Args:
            path: an empty overlay; what it is on has the same content as what the disk's top is
                on.

        Raises:
            PoclabError: it cannot be done; the domain goes on as before.
        """
        disk = self._there()
        target = Element("disk", {"type": "file"})
        target.append(_format())
        SubElement(target, "source", {"file": path})
        flags = (
            libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW  # the top alone
            | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            # QEMU cannot start with a copy at work, so libvirt wants to know that it will end.
            | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        )
        events.step("copy", domain=self._name)
        with libvirt_errors(f"{self._name} cannot be moved to {path}"):
            self._domain.blockCopy(disk.target, tostring(target, encoding="unicode"), {}, flags)
            self._pivot(disk.target)

    def merge(self, path: str) -> None:
        """Merge what is on top into a file below, and have the domain go on with that.

        Args:
            path: a file of the disk's chain.

        Raises:
            PoclabError: it cannot be done; the domain goes on as before.
        """
        disk = self._there()
        events.step("merge", domain=self._name)
        with libvirt_errors(f"the disk of {self._name} cannot be merged into {path}"):
            active = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
            self._domain.blockCommit(disk.target, path, None, 0, active)
            self._pivot(disk.target)

    def abort(self) -> None:
        """End a copy or merge that nobody waits for any more; the domain goes on as before it.

        Raises:
            PoclabError: it does not end.
        """
        disk = self._there()
        events.step("abort", domain=self._name)
        with libvirt_errors(f"the copying of {self._name}'s disk cannot be ended"):
            self._domain.blockJobAbort(disk.target, 0)

    def _pivot(self, target: str) -> None:
        """Wait until a job has caught up, then have the domain go on with what it wrote."""
        best, since = -1, time.monotonic()
        while not (disk := self._there()).ready:
            if not disk.job:
                raise PoclabError(
                    f"the copying of {self._name}'s disk ended too early",
                    why="there is no room for it, or the VM went off",
                    fix="look at the VM and at the pool's free space, then run it again",
                )
            info = self._domain.blockJobInfo(target, 0) or {}
            events.progress("copying", info.get("cur"), info.get("end"))
            if (now := int(info.get("cur", 0))) != best:
                best, since = now, time.monotonic()
            if time.monotonic() - since > _STALLED:
                raise PoclabError(
                    f"the copying of {self._name}'s disk does not get on",
                    why=f"{now} bytes are copied, none in the last {_STALLED:.0f} s",
                    fix="look at the pool's disk (`dmesg`), then run it again",
                )
            time.sleep(0.05)
        events.step("pivot", domain=self._name)
        self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def _there(self) -> SystemDisk:
        found = self.disk()
        if found is None:
            raise PoclabError(f"{self._name} has no system disk of its own")
        return found


def _format() -> Element:
    return Element("driver", {"type": "qcow2"})
