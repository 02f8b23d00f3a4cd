"""Which files of a directory domains stand on, as libvirt and the files themselves say it.

poclab's records name the volumes of its own VMs. Deletion must not go by them alone: somebody
renames a domain, hangs a disk of the pool into a domain of his own, or puts an overlay of his
own on a base.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import libvirt

from poclab.core import safe_xml
from poclab.disks.qcow2_header import backing_file
from poclab.virt.errors import libvirt_errors

# The attributes of a disk's <source> that name a file (formatdomain.html#hard-drives-floppy-...).
_FILE = ("file", "dev")


def sources(xml: str) -> Iterator[tuple[str, str]]:
    """The disks of a domain: pairs of a pool and a volume's name, or of "" and a path.

    Everything below `<disk>` counts: backing files, and the target of a running copy.

    Args:
        xml: the domain's XML.
    """
    for disk in safe_xml.parse(xml).iterfind("devices/disk"):
        for source in disk.iter("source"):
            if pool := source.get("pool"):
                yield pool, source.get("volume", "")
            yield from (("", path) for name in _FILE if (path := source.get(name)))


def named_files(name: str, directory: str) -> list[str]:
    """The paths that the name of a backing file means, as QEMU reads it.

    Args:
        name: the name in a file's header: a path, absolute or not, `file:PATH` or `json:{...}`.
        directory: where the file is whose header it is.
    """
    if name.startswith("json:"):
        try:
            names = list(_filenames(json.loads(name.removeprefix("json:"))))
        except (ValueError, RecursionError):
            names = []
    else:
        names = [name.removeprefix("file:")] if name else []
    return [os.path.normpath(Path(directory, each)) for each in names if "\0" not in each]


def _filenames(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str) and str(key).rpartition(".")[2] == "filename":
                yield item
            yield from _filenames(item)


class Usage:
    """Finds the files of one directory that domains stand on."""

    def __init__(self, conn: libvirt.virConnect, directory: str, *, local: bool) -> None:
        self._conn = conn
        self._local = local
        self._directories = {os.path.normpath(directory)}
        if local:
            self._directories.add(os.path.realpath(directory))
        self._below: dict[str, list[str]] = {}

    def of(self, definitions: Iterable[str]) -> set[str]:
        """The names of the files that a domain stands on, whatever is between.

        Args:
            definitions: the domain's XML, defined and running.

        Raises:
            PoclabError: libvirt does not tell.
        """
        found: set[str] = set()
        waiting = [self._path(*source) for xml in definitions for source in sources(xml)]
        seen: set[str] = set()
        while waiting:
            path = waiting.pop()
            if path and path not in seen:
                seen.add(path)
                found |= self._here(path)
                waiting += self._backing(path)
        return found

    def _path(self, pool: str, name: str) -> str:
        if not pool:
            return os.path.normpath(name)
        with libvirt_errors(f"the storage pool {pool} cannot be read"):
            try:
                found = self._conn.storagePoolLookupByName(pool)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    return ""  # such a domain cannot start
                raise
            root = safe_xml.parse(found.XMLDesc(0))
        return os.path.normpath(Path(root.findtext("target/path", ""), name))

    def _here(self, path: str) -> set[str]:
        """The file's name, if it is in the directory; a link may have it by another name."""
        paths = {path, os.path.realpath(path)} if self._local else {path}
        split = (os.path.split(each) for each in paths)
        return {name for directory, name in split if directory in self._directories}

    def _backing(self, path: str) -> list[str]:
        if path not in self._below:
            self._below[path] = named_files(self._header(path), str(Path(path).parent))
        return self._below[path]

    def _header(self, path: str) -> str:
        """The backing file's name in a file's header."""
        if self._local:
            try:
                return backing_file(Path(path))
            except OSError:
                pass  # not readable for this user; libvirt may know
        try:
            xml = self._conn.storageVolLookupByPath(path).XMLDesc(0)
        except libvirt.libvirtError:
            return ""  # in no pool: what a domain's own XML names is all there is to know
        return safe_xml.parse(xml).findtext("backingStore/path", "")
