"""Prints what a libvirt host and poclab's pool on it really hold, as JSON.

    python look.py [POOL]

Asks libvirt and reads the pool's directory, not poclab: so it shows what poclab does not know
of. Used through `labs.look`. The file imports nothing of the tests, so any account can run it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import libvirt


def disks(xml: str) -> list[str]:
    """The files of a domain's disks, in order."""
    return [str(item.get("file")) for item in fromstring(xml).iterfind("devices/disk/source")]


def backing(path: str) -> str:
    """The file a qcow2 file stands on, or an empty string."""
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return str(json.loads(done.stdout).get("backing-filename", "")) if done.stdout else ""


def domain(found: libvirt.virDomain) -> dict[str, Any]:
    """What a domain is defined as, what it runs on, and which files of each are not there."""
    inactive = found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    root = fromstring(inactive)
    defined = disks(inactive)
    live = disks(found.XMLDesc(0)) if found.isActive() else []
    # One that went off in between showed what it is defined as: an ended command's last request to
    # libvirtd may still be under way.
    live = live if found.isActive() else []

    def gone(paths: list[str]) -> list[str]:
        below = [backing(path) for path in paths if Path(path).exists()]
        wanted = {*paths, *filter(None, below)}
        return sorted(Path(path).name for path in wanted if not Path(path).exists())

    return {
        "active": bool(found.isActive()),
        "memory": int(root.findtext("memory", "0")),
        "defined": [Path(path).name for path in defined],
        "live": [Path(path).name for path in live],
        "missing": gone(defined),
        "lost": gone(live),
        "nvram": root.findtext("os/nvram", ""),
    }


def main() -> None:
    """Look; see the module."""
    pool = sys.argv[1] if len(sys.argv) > 1 else "poclab"
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    conn = libvirt.open()
    domains = {}
    for item in conn.listAllDomains(0):
        with contextlib.suppress(libvirt.libvirtError):  # another lab's, gone meanwhile
            domains[item.name()] = domain(item)
    try:
        found = conn.storagePoolLookupByName(pool)
        directory = fromstring(found.XMLDesc(0)).findtext("target/path", "")
    except libvirt.libvirtError:
        directory = ""
    print(
        json.dumps(
            {
                "domains": domains,
                "networks": {
                    item.name(): bool(item.isActive()) for item in conn.listAllNetworks(0)
                },
                "directory": directory,
                "files": sorted(x.name for x in Path(directory).iterdir()) if directory else [],
            }
        )
    )


if __name__ == "__main__":
    main()
