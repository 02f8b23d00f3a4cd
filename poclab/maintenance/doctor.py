"""Checks of the host: each thing poclab needs, whether it is there, and what helps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from poclab.core import hints
from poclab.core.errors import PoclabError
from poclab.core.process import runner
from poclab.core.units import GIB, format_size
from poclab.maintenance.repair import REPAIRS, Repair
from poclab.store.marks import Marks
from poclab.virt.host import Host, connect

# Firmware descriptors that libvirt chooses UEFI by (QEMU, docs/interop/firmware.json).
_FIRMWARE = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
_LITTLE_SPACE = 5 * GIB
_LISTED = 20  # damaged records in one go


@dataclass(frozen=True)
class Check:
    """A line of `poclab doctor`; the fields are the JSON's keys.

    Attributes:
        check: what was looked at.
        result: "ok", "missing" (something will not work) or "note" (it works, with a drawback).
        help: what was found, or what to do.
    """

    check: str
    result: str
    help: str


@dataclass(frozen=True)
class _Program:
    name: str
    wanted_for: str
    package: str
    needed: bool = True


_PROGRAMS = (
    _Program("qemu-system-x86_64", "VMs", "qemu-system-x86 (Debian, Ubuntu), qemu-kvm (Fedora)"),
    _Program("qemu-img", "disks", "qemu-utils (Debian, Ubuntu), qemu-img (Fedora)"),
    _Program("ssh", "logging in", "openssh-client (Debian, Ubuntu), openssh-clients (Fedora)"),
    _Program("podman", "image build", "podman"),
    _Program("mke2fs", "builder direct", "e2fsprogs"),
    _Program("mcopy", "builder direct", "mtools"),
    _Program("sfdisk", "builder direct", "fdisk (Debian, Ubuntu), util-linux (Fedora)"),
    _Program("swtpm", "VMs with tpm: true", "swtpm and swtpm-tools", needed=False),
    _Program("sudo", "builders of bootc images without root", "sudo", needed=False),
)


def examine(uri: str | None, accel: str) -> list[Check]:
    """Check the host, everything in one go.

    Args:
        uri: the libvirt URI, None for libvirt's choice.
        accel: "auto", "kvm" or "tcg".
    """
    return [*_programs(), _firmware(), *_libvirt(uri, accel), _subordinate_ids()]


def _programs() -> Iterator[Check]:
    for program in _PROGRAMS:
        found = runner().which(program.name)
        if found:
            yield Check(program.name, "ok", found)
        else:
            result = "missing" if program.needed else "note"
            yield Check(
                program.name, result, f"for {program.wanted_for}: install {program.package}"
            )


def _firmware() -> Check:
    found = [path for directory in _FIRMWARE for path in Path(directory).glob("*.json")]
    if found:
        return Check("UEFI firmware", "ok", f"{len(found)} descriptors")
    return Check("UEFI firmware", "missing", "install ovmf (Debian, Ubuntu), edk2-ovmf (Fedora)")


def _libvirt(uri: str | None, accel: str) -> Iterator[Check]:
    try:
        with connect(uri, accel) as host:
            yield Check("libvirt", "ok", host.uri)
            for name, check in (
                ("acceleration", _acceleration),
                ("storage pool", _pool),
                ("leftovers", _leftovers),
                ("marks", _marks),
                ("records", _records),
            ):
                yield _guarded(name, host, check)
            for repair in REPAIRS:
                if repair.applies(host):
                    yield _guarded(repair.name, host, partial(_looked, repair))
    except PoclabError as error:
        yield Check("libvirt", "missing", error.fix or error.why or error.what)


def _looked(repair: Repair, host: Host) -> Check:
    return Check(repair.name, *repair.look(host))


def _guarded(name: str, host: Host, check: Callable[[Host], Check]) -> Check:
    try:
        return check(host)
    except PoclabError as error:
        return Check(name, "missing", "; ".join(part for part in (error.why, error.fix) if part))


def _acceleration(host: Host) -> Check:
    if not host.traits.kvm:
        return Check("acceleration", "note", "TCG: guests are emulated, about ten times slower")
    return Check("acceleration", "ok", "KVM")


def _pool(host: Host) -> Check:
    free = host.pool.free()
    text = f"{host.pool.directory}, {format_size(free)} free"
    return Check("storage pool", "note" if free < _LITTLE_SPACE else "ok", text)


def _leftovers(host: Host) -> Check:
    from poclab.maintenance.orphans import orphans

    count = len(orphans(host))
    if count:
        help_ = f"{count} of interrupted commands: `poclab gc` removes them"
        return Check("leftovers", "note", help_)
    return Check("leftovers", "ok", "none")


def _marks(host: Host) -> Check:
    found = Marks.of(host.pool)
    if found.unreadable:
        errors = [lost.error() for lost in found.unreadable]
        return Check("marks", "note", "; ".join(f"{each.what}: {each.fix}" for each in errors))
    return Check("marks", "ok", f"{len(found.marks)}")


def _records(host: Host) -> Check:
    from poclab.store.damaged import find

    found = find(host)
    if found:
        texts = [*map(str, found[:_LISTED])]
        if len(found) > _LISTED:
            texts.append(f"and {len(found) - _LISTED} more, once these are gone")
        return Check("records", "note", " | ".join(texts))
    return Check("records", "ok", "none damaged")


def _subordinate_ids() -> Check:
    """Rootless podman needs a range of user IDs (subuid(5))."""
    from poclab.core.paths import user_name

    if os.geteuid() == 0:
        return Check("rootless podman", "ok", "not needed as root")
    user = user_name()
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        lines = []
    if any(line.split(":")[0] in (user, str(os.getuid())) for line in lines):
        return Check("rootless podman", "ok", "user IDs in /etc/subuid")
    ids = "100000-165535"
    fix = hints.command("usermod", "--add-subuids", ids, "--add-subgids", ids, user)
    return Check("rootless podman", "note", fix)
