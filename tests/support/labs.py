"""Tiny labs on real hosts: guests of a few bytes, lab files, and a look at what is there.

The guests are real ones for QEMU: a boot sector. `IDLE` sleeps until its power button is
pressed and then powers off, as an operating system does, within a twentieth of a second. `WRITER`
fills its system disk meanwhile. `SLEEPER` suspends to memory first, once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poclab.model.version_volumes import base_volume
from tests.support.hosts import Completed, Host

MIB = 1024**2
# x86 code at 0x7c00 in real mode. SeaBIOS puts the ACPI registers of both chipsets at 0x600:
# 0x600 status, 0x602 enable, bit 8 in both is the power button; 0x604 control, 0x2000 is
# "sleep enable" with the type that QEMU takes for off (ACPI 6.5, 4.8.3).
_LISTEN = bytes.fromhex("ba0206 b80001 ef fb")  # mov dx,602; mov ax,100; out dx,ax; sti
_PRESSED = bytes.fromhex("ba0006 ed f6c401")  # mov dx,600; in ax,dx; test ah,1
_OFF = bytes.fromhex("ba0406 b80020 ef ebf7")  # mov dx,604; mov ax,2000; out dx,ax; again
_WAIT = bytes.fromhex("f4")  # hlt: until the timer's next tick, 18 a second
# Write 32 KiB from address 0x1000:0 to the sector in the packet at 0x7d00 (INT 13h, AH=43h),
# then add 64 to the packet's sector.
_WRITE = bytes.fromhex("be007d b80043 b280 cd13 8306087d40 83160a7d00")
_PACKET = bytes.fromhex("1000 4000 0000 0010 0008000000000000")  # from sector 2048

# Suspend to memory (0x604 again, type 1), unless byte 0x70 of the clock's memory has it noted:
# it outlasts the reset that waking up is without an operating system.
_SLEEP = bytes.fromhex(
    "b070 e670 e471 3c5a 740f"  # mov al,70; out 70,al; in al,71; cmp al,5a; je: past the rest
    "b070 e670 b05a e671"  # mov al,70; out 70,al; mov al,5a; out 71,al
    "ba0406 b80024 ef"  # mov dx,604; mov ax,2400; out dx,ax
)


def _boot_sector(work: bytes, first: bytes = b"") -> bytes:
    loop = work + _PRESSED
    jump = bytes([0x74, 256 - len(loop) - 2])  # jz: back to the work
    code = bytes.fromhex("31c08ed8") + first + _LISTEN + loop + jump + _OFF  # ds = 0
    partition = bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0]) + (1).to_bytes(4, "little")
    sector = code.ljust(0x100, b"\0") + _PACKET
    sector = sector.ljust(446, b"\0") + partition + (2047).to_bytes(4, "little")
    return sector.ljust(510, b"\0") + b"\x55\xaa"


IDLE = _boot_sector(_WAIT)
WRITER = _boot_sector(_WRITE)
SLEEPER = _boot_sector(_WAIT, first=_SLEEP)


def disk_file(host: Host, name: str, boot: bytes = IDLE, *, size: int = 2 * MIB) -> Path:
    """A raw disk of the account that boots; its name is in its content, so names tell apart."""
    path = host.scratch / name
    content = boot + b"\0" * 4096 + name.encode()
    path.write_bytes(content.ljust(size, b"\0"))
    return host.give(path)


def store(host: Host, ref: str, boot: bytes = IDLE, *, size: int = 2 * MIB) -> Path:
    """Import a tiny version; returns the file it was made of."""
    path = disk_file(host, f"{ref.replace(':', '-')}.raw", boot, size=size)
    host.poclab("image", "import", ref, str(path), "--profile", "legacy")
    return path


@dataclass(frozen=True)
class Vm:
    """A VM of a lab file; sizes in MiB.

    Attributes:
        name: its name.
        image: its version.
        memory: its memory.
        kept: a data disk `data` that outlives `reset` and `down`; None for no such disk.
        more: more lines of YAML, in flow style.
    """

    name: str
    image: str = "tiny:v1"
    memory: int = 32
    kept: bool | None = None
    more: str = ""

    def line(self, networks: Sequence[str]) -> str:
        """Its line in the file."""
        parts = [f"image: '{self.image}'", f"memory: {self.memory}MiB"]
        if networks:
            parts.append(f"networks: [{', '.join(networks)}]")
        if self.kept is not None:
            keep = str(self.kept).lower()
            parts.append(f"disks: [{{name: data, size: 1MiB, keep: {keep}}}]")
        return f"  {self.name}: {{{', '.join([*parts, *filter(None, [self.more])])}}}\n"


def lab_file(host: Host, name: str, *vms: Vm, net: int | None = 1, file: str = "") -> str:
    """Write a lab file and return its path.

    Args:
        host: where it goes.
        name: the lab's name.
        vms: its VMs.
        net: the third byte of its network's addresses, None for no network.
        file: the file's name, if it is not the lab's.
    """
    networks = [] if net is None else ["lan"]
    text = f"name: {name}\ndefaults: {{cpus: 1}}\n"
    if networks:
        text += f"networks:\n  lan: {{mode: nat, cidr: 10.77.{net}.0/24}}\n"
    text += "vms:\n" + "".join(vm.line(networks) for vm in vms)
    return str(host.write(f"{file or name}.yaml", text))


# --- what is there ------------------------------------------------------------------------


def look(host: Host) -> dict[str, Any]:
    """What libvirt and the pool's directory hold, asked without poclab."""
    program = str(host.place.installation.checkout / "tests/support/look.py")
    done = host.run(host.place.installation.python, program)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


_MARK = re.compile(r"\.[0-9a-f]{8}(-[0-9a-f]{8})?(\.[a-z0-9]+)$")


def unmarked(volume: str) -> str:
    """A volume's name without what tells one system disk from the next."""
    return _MARK.sub(r"\2", volume)


def state(seen: dict[str, Any], lab: str) -> dict[str, Any]:
    """What of a look should be the same each time a lab is brought to one state."""
    domains = {
        name: {
            "active": item["active"],
            "memory": item["memory"],
            "disks": [unmarked(volume) for volume in item["defined"]],
        }
        for name, item in seen["domains"].items()
        if name.startswith(f"{lab}.")
    }
    networks = {name: up for name, up in seen["networks"].items() if name.startswith(f"{lab}.")}
    files = sorted(unmarked(name) for name in seen["files"] if f".{lab}." in name)
    return {"domains": domains, "networks": networks, "files": files}


def rows(host: Host, lab: str) -> list[dict[str, Any]]:
    """The lab's rows of `poclab status`, without uptime and the ports of a session.

    Which ports are free is the machine's affair; that no two VMs have one is looked at.
    """
    found = json.loads(host.poclab("status", lab, "-o", "json").stdout)
    addresses = [row["address"] for row in found]
    assert len(set(addresses)) == len(addresses), addresses
    for row in found:
        del row["uptime"]
        row["address"] = row["address"].partition(":")[0]
    return list(found)


def content(host: Host, volume: str) -> str:
    """The digest of what a guest sees of a qcow2 volume, also while it runs."""
    path = f"{look(host)['directory']}/{volume}"
    raw = str(host.scratch / f"{volume}.raw")
    host.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw)
    return hashlib.sha256(Path(raw).read_bytes()).hexdigest()


def base(host: Host, ref: str) -> str:
    """The name of a version's base disk."""
    name, _, tag = ref.partition(":")
    rows = json.loads(host.poclab("image", "ls", name, "-o", "json").stdout)
    (digest,) = [row["digest"] for row in rows if row["tag"] == tag]
    return base_volume(digest)


def scribble(host: Host, volume: str, pattern: int) -> str:
    """Write into a volume that no VM has open; returns its content's digest."""
    path = f"{look(host)['directory']}/{volume}"
    host.run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 64k", path)
    return content(host, volume)


def leftovers(host: Host, lab: str = "") -> list[str]:
    """What poclab itself calls left over: of a lab, or all."""
    found = json.loads(host.poclab("doctor", "--orphans", "-o", "json", check=False).stdout)
    return [row["name"] for row in found if not lab or f".{lab}." in row["name"]]


def robbed(done: Completed) -> bool:
    """Whether another session on this machine took a forwarded port between plan and start.

    The command says so and is to be run again; tests of two checkouts side by side see it.
    """
    return done.returncode == 1 and "another program took the port" in done.stderr
