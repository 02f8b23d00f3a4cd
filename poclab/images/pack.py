"""Versions that nobody uses: packed where the pool's file system cannot share blocks.

The latest version of each image stays as it is, and so does every one that a VM stands on and
what these are layered on. The others take a third of their size, packed, and are brought back
when a VM is put on them. While that goes on, one of the two files is always there and whole; what
is left beside the plain one is garbage that the next build, import or removal deletes.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from poclab.core import events, locks
from poclab.core.errors import PoclabError
from poclab.core.units import format_seconds, format_size
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import base_volume, bases, packed_volume
from poclab.store.parked import ParkedDisks
from poclab.store.versions import Store
from poclab.virt.host import Host
from poclab.virt.pool_local import LocalPool
from poclab.virt.volume_stream import file_of

_PATIENCE = 3600.0  # seconds; another command brings the same disk back
_here = Lock()  # among the threads of this one


def wanted() -> bool:
    """Whether versions are packed without being asked; POCLAB_PACK=0 says no."""
    return os.environ.get("POCLAB_PACK", "1").lower() not in ("0", "no", "off", "false")


# --- which ------------------------------------------------------------------------------


def active(versions: Iterable[Version], used: Collection[str]) -> set[str]:
    """The bases that are to stay as they are. Pure.

    Args:
        versions: all versions, by image and time.
        used: bases that domains stand on.
    """
    known = list(versions)
    latest = {version.ref.image: version for version in known}
    needed = [item for item in known if base_volume(item.digest) in used]
    return {*used, *(base for item in [*latest.values(), *needed] for base in bases(item))}


@dataclass(frozen=True)
class _Found:
    """What there is of versions.

    Attributes:
        versions: all of them.
        active: bases that stay as they are.
        names: all volumes.
    """

    versions: list[Version]
    active: set[str]
    names: set[str]


def _look(host: Host, store: Store) -> _Found:
    versions = store.versions()
    names = set(host.pool.names())
    from poclab.store.usage import used_volumes

    used = used_volumes(host.vms(), host.foreign(), ParkedDisks.of(host.pool))
    stay = active(versions, used)
    if store.holds_all():  # what that stands on cannot be known
        stay |= names
    return _Found(versions, stay, names)


# --- packing ----------------------------------------------------------------------------


def pack_older(host: Host, image: str) -> None:
    """Pack the versions of an image that nobody uses, after a newer one was stored.

    Does nothing where blocks can be shared, and where the pool is reached through libvirt alone.
    Whatever goes wrong is a warning: the new version is stored.
    """
    from poclab.disks import dedupe

    if not wanted() or not isinstance(host.pool, LocalPool):
        return
    if dedupe.possible(Path(host.pool.directory)):
        return
    try:
        pack(host, [item.ref for item in _candidates(host) if item.ref.image == image])
    except PoclabError as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        events.warning(f"older versions of {image} stay as they are: {why}")


def pack_all(host: Host) -> list[Ref]:
    """Pack every version that nobody uses.

    Returns:
        The versions that are packed now and were not before.

    Raises:
        PoclabError: see `pack`.
    """
    refs = [version.ref for version in _candidates(host)]
    pack(host, refs)
    return refs


def _candidates(host: Host) -> list[Version]:
    found = _look(host, Store(host.pool, host.uri))
    plain = found.names - found.active
    once = {version.digest: version for version in found.versions}
    return [item for item in once.values() if base_volume(item.digest) in plain]


def pack(host: Host, refs: Iterable[Ref]) -> None:
    """Pack versions.

    Raises:
        PoclabError: one is not there, in use, the latest of its image, or damaged; or the pool
            cannot be written.
    """
    store = Store(host.pool, host.uri)
    host.pool.sweep()
    for ref in refs:
        if not isinstance(host.pool, LocalPool):
            raise PoclabError(
                f"{ref} cannot be packed",
                why=f"{host.pool.directory} is not a directory this user can write",
                fix="do it as root, or as the user whose session it is",
            )
        version = store.get(ref)
        base = base_volume(version.digest)
        if base in host.pool.names():
            _refuse_active(_look(host, store), version)
            _pack(host, store, version)


def _refuse_active(found: _Found, version: Version) -> None:
    if base_volume(version.digest) in found.active:
        raise PoclabError(
            f"{version.ref} stays as it is",
            why="a VM stands on it, it is the latest of its image, or below one of these",
            fix="see: poclab image ls",
        )


def _pack(host: Host, store: Store, version: Version) -> None:
    from poclab.disks import compression

    pool = host.pool
    base = base_volume(version.digest)
    began = time.monotonic()
    try:
        with pool.staging() as work:
            file = work / "disk.zst"
            events.step("pack", volume=base)
            compression.pack(Path(pool.path(base)), file, version.digest)
            size, small = version.size, file.stat().st_size
            with store.changing():
                if base not in pool.names():
                    return
                _refuse_active(_look(host, store), version)  # it took a while
                events.step("packed base", volume=packed_volume(base))
                pool.adopt(packed_volume(base), file)
                events.step("delete", volume=base)
                pool.delete(base)
    except OSError as error:
        raise PoclabError(
            f"{version.ref} cannot be packed", why=str(error.strerror), fix=_room(host, error)
        ) from error
    took = format_seconds(time.monotonic() - began)
    events.note(f"{version.ref} is packed: {format_size(size)} to {format_size(small)} in {took}")


# --- bringing back ----------------------------------------------------------------------


def bring_back(host: Host, version: Version) -> None:
    """See that a version's disk, and what it is layered on, can be used; says how long it took.

    Call it with the store held, so that nobody packs it again before a definition names it.

    Raises:
        PoclabError: a disk is damaged, or there is no room.
    """
    names = host.pool.names()
    for digest in (version.digest, *version.parents):
        base = base_volume(digest)
        if packed_volume(base) not in names:
            continue
        held = locks.hold(base, uri=host.uri, doing="poclab", wait=_PATIENCE, kind="packed")
        with _here, held:
            if base not in host.pool.names():  # else another was quicker, or was cut short
                _unpack(host, version, digest)
            if packed_volume(base) in host.pool.names():
                events.step("delete", volume=packed_volume(base))
                host.pool.delete(packed_volume(base))


def _unpack(host: Host, version: Version, digest: str) -> None:
    from poclab.disks import compression

    pool = host.pool
    base = base_volume(digest)
    packed = packed_volume(base)
    began = time.monotonic()
    events.step("unpack", volume=packed)
    try:
        with pool.staging() as work:
            file = work / "disk.qcow2"
            compression.unpack(file_of(host, packed, work), file, digest)
            events.step("base", volume=base)
            pool.adopt(base, file)
    except compression.DamagedError as error:
        raise PoclabError(
            f"the packed disk of {version.ref} is damaged",
            why=error.why,
            fix="check the pool's file system, then build or import it again with another tag",
        ) from error
    except OSError as error:
        raise PoclabError(
            f"{version.ref} cannot be unpacked", why=str(error.strerror), fix=_room(host, error)
        ) from error
    events.note(f"{version.ref} was packed: back in {format_seconds(time.monotonic() - began)}")


def _room(host: Host, error: OSError) -> str:
    return f"make room in {host.pool.directory}" if error.errno == errno.ENOSPC else ""


def unpack(host: Host, refs: Iterable[Ref]) -> None:
    """Bring versions back without putting a VM on them.

    Raises:
        PoclabError: see `bring_back`, or one is not there.
    """
    store = Store(host.pool, host.uri)
    host.pool.sweep()
    for ref in refs:
        with store.reading():
            bring_back(host, store.get(ref))
