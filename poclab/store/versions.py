"""Versions in the pool: what there is, publishing, tagging, removing.

A version is a manifest volume `manifest.IMAGE.TAG.json` that names a base disk
`base.DIGEST.qcow2`, and the bases below it when that is layered on others. The manifest is
written last: a version exists if and only if its manifest holds and its bases are there, plain
or packed (`base.DIGEST.qcow2.zst`, see `compression`). A base without a manifest, a packed one
beside a plain one and a manifest that does not hold are garbage. A base never changes, so versions
with equal disks share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from poclab.core import events, locks
from poclab.core.errors import NewerFormatError, PoclabError
from poclab.core.timestamps import now
from poclab.core.units import format_size
from poclab.model import volumes
from poclab.model.version import Origin, Profile, Ref, Version
from poclab.model.version_volumes import (
    base_volume,
    bases,
    manifest_volume,
    packed_volume,
    ref_of,
    with_packed,
)
from poclab.model.volumes import Kind
from poclab.store.manifest import decode, encode
from poclab.store.sealed import MalformedError
from poclab.virt.errors import GoneError

_PATIENCE = 600.0  # seconds; a slow upload holds the lock that long


class Volumes(Protocol):
    """What the store needs of a pool."""

    directory: str

    def names(self) -> list[str]:
        """All volumes."""

    def read(self, name: str) -> bytes:
        """A small volume's content."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a small volume."""

    def digest(self, name: str, like: str) -> str | None:
        """The digest of a volume's content, or None where that would cross a network."""

    def adopt(self, name: str, file: Path) -> None:
        """Take a file in, read-only."""

    def delete(self, name: str) -> None:
        """Delete a volume."""

    def staging(self) -> AbstractContextManager[Path]:
        """A private directory for files to adopt."""

    def sweep(self) -> None:
        """Remove what interrupted commands left in staging."""


@dataclass(frozen=True)
class Stored:
    """A manifest that is there, whether it counts or not.

    Attributes:
        ref: the version's name, by the volume's.
        version: what it says, or None when it does not hold.
        fault: why it does not.
        newer: whether it holds and only a newer poclab understands it.
        holds: whether it may name any base, so that none is deleted: it was not cut short.
        gone: whether it was removed since it was listed.
    """

    ref: Ref
    version: Version | None = None
    fault: str = ""
    newer: bool = False
    holds: bool = False
    gone: bool = False


class Store:
    """The versions of one pool.

    Changes hold the host's store lock alone; whoever puts a VM on a version holds it shared
    (`reading`), so that no version goes between the look at it and the VM's definition.
    """

    def __init__(self, pool: Volumes, uri: str) -> None:
        self._pool = pool
        self._uri = uri

    def reading(self) -> AbstractContextManager[None]:
        """Hold the store as it is: nothing is published or removed meanwhile."""
        return locks.hold(
            "images", uri=self._uri, doing="poclab", shared=True, wait=_PATIENCE, kind="store of"
        )

    def changing(self) -> AbstractContextManager[None]:
        """Hold the store alone."""
        return locks.hold(
            "images", uri=self._uri, doing="poclab image", wait=_PATIENCE, kind="store of"
        )

    # --- reading -----------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """All versions whose base is there, by image and time."""
        names = with_packed(self._pool.names())
        found = (self._load(str(name)) for name in volumes.known(names, Kind.MANIFEST))
        good = [item for item in found if item and names.issuperset(bases(item))]
        return sorted(good, key=lambda item: (item.ref.image, item.created, item.ref.tag))

    def has(self, ref: Ref) -> bool:
        """Whether there is such a version."""
        return self.find(ref) is not None

    def get(self, ref: Ref) -> Version:
        """A version by its name.

        Raises:
            PoclabError: there is none; the message names the ones there are.
        """
        return self.find(ref) or self._missing(ref)

    def find(self, ref: Ref) -> Version | None:
        """A version by its name, None when there is none."""
        names = with_packed(self._pool.names())
        if manifest_volume(ref) not in names:
            return None
        version = self._load(manifest_volume(ref))
        return version if version and names.issuperset(bases(version)) else None

    def _missing(self, ref: Ref) -> Version:
        self._refuse_unclear(ref)
        versions = self.versions()
        tags = [item.ref.tag for item in versions if item.ref.image == ref.image]
        if tags:
            raise PoclabError(
                f"{ref} is not there",
                why=f"{ref.image} has {', '.join(tags)}",
                fix=f"choose one of these, or `poclab image build {ref.image} --tag {ref.tag}`",
            )
        from difflib import get_close_matches

        images = sorted({item.ref.image for item in versions})
        near = get_close_matches(ref.image, images, n=1)
        why = f"there is no image {ref.image}"
        if near:
            why += f"; did you mean {near[0]}?"
        elif images:
            why += f"; there are {', '.join(images)}"
        raise PoclabError(
            f"{ref} is not there",
            why=why,
            fix=f"`poclab image build {ref.image} --tag {ref.tag}`, or `poclab image import`",
        )

    def manifests(self) -> list[Stored]:
        """All manifests by name, also those that do not count; call within `reading`."""
        refs = map(ref_of, self._pool.names())
        return [self._stored(ref) for ref in sorted(filter(None, refs))]

    def _stored(self, ref: Ref) -> Stored:
        try:
            return Stored(ref, self._read(manifest_volume(ref)))
        except NewerFormatError as error:
            return Stored(ref, fault=str(error), newer=True, holds=True)
        except MalformedError as error:
            return Stored(ref, fault=str(error), holds=True)
        except ValueError as error:
            return Stored(ref, fault=str(error))
        except GoneError as error:  # another command removed it meanwhile
            return Stored(ref, fault=error.what, gone=True)
        except PoclabError as error:
            return Stored(ref, fault=f"it cannot be read: {error.why or error.what}", holds=True)

    def _load(self, name: str) -> Version | None:
        try:
            return self._read(name)
        except ValueError as error:
            events.debug(f"{name} does not count: {error}")
        except PoclabError as error:
            events.debug(f"{name} cannot be read: {error.why or error.what}")
        return None

    def _read(self, name: str) -> Version:
        version = decode(self._pool.read(name))
        if manifest_volume(version.ref) != name:
            raise MalformedError(f"it is the manifest of {version.ref}")
        return version

    # --- writing -----------------------------------------------------------------------

    def workdir(self) -> AbstractContextManager[Path]:
        """A fresh private directory on the pool's file system, removed afterwards."""
        self._pool.sweep()
        return self._pool.staging()

    def refuse_existing(self, ref: Ref) -> None:
        """See that a name is free.

        Raises:
            PoclabError: there is such a version; versions never change.
        """
        found = self.find(ref)
        if found:
            raise PoclabError(
                f"{ref} exists already",
                why=f"a version never changes; this one was {found.origin.kind} {found.created}",
                fix=f"choose another tag, or remove it: poclab image rm {ref}",
            )
        self._refuse_unclear(ref)

    def _refuse_unclear(self, ref: Ref) -> None:
        """Refuse a name whose manifest is there and cannot be understood.

        Raises:
            PoclabError: there is such a manifest, and it was not cut short.
        """
        if manifest_volume(ref) not in self._pool.names():
            return
        found = self._stored(ref)
        if found.newer:
            raise PoclabError(
                f"{ref} exists already",
                why="a newer poclab made it; this one does not understand it",
                fix="choose another tag, or use the newer poclab",
            )
        if found.holds:
            raise PoclabError(
                f"{ref} is damaged",
                why=f"{manifest_volume(ref)}: {found.fault}",
                fix=f"delete that record, or choose another tag: {self.removal(ref)}",
            )

    def removal(self, ref: Ref) -> str:
        """The command that deletes a version's manifest, whatever is in it."""
        return volumes.removal(manifest_volume(ref), self._uri)

    def publish(
        self,
        ref: Ref,
        file: Path,
        *,
        virtual_size: int,
        profile: Profile,
        origin: Origin,
        user: str = "root",
        labels: Mapping[str, str] | None = None,
        parents: tuple[str, ...] = (),
        digest: str | None = None,
    ) -> Version:
        """Make a version of a qcow2 file; the file is used up.

        Args:
            ref: the version's name.
            file: a complete qcow2 file; its backing file, if any, is the first parent's base.
            virtual_size: bytes the guest will see.
            profile: which devices the guest can drive.
            origin: where it comes from.
            user: the user to log in as.
            labels: free text by key.
            parents: digests of the bases below it, nearest first.
            digest: the file's, if it is known.

        Raises:
            PoclabError: the name is taken, a parent is gone, the pool cannot be written, or the
                version's manifest could not be read back.
        """
        from poclab.disks.digest import file_digest

        version = Version(
            ref=ref,
            digest=digest or file_digest(file),
            size=file.stat().st_size,
            virtual_size=virtual_size,
            profile=profile,
            origin=origin,
            created=now(),
            user=user,
            labels=dict(labels or {}),
            parents=parents,
        )
        manifest = encode(version)  # what no manifest can hold is refused before anything is there
        base, *below = bases(version)
        self._share(version, file)
        damaged = self._is_damaged(version)
        with self.changing():
            self.refuse_existing(ref)
            names = self._pool.names()
            lost = sorted(set(below).difference(with_packed(names)))
            if lost:
                raise PoclabError(f"{ref} has nothing to stand on", why=f"{lost[0]} is gone")
            found = base in names
            try:
                known = {base_volume(version.digest) for version in self.versions()}
                if base not in known or not found or damaged:
                    events.step("base", volume=base)
                    self._pool.adopt(base, file)  # one there without a manifest may be cut short
                events.step("manifest", version=str(ref))
                self._pool.write(manifest_volume(ref), manifest)
            except BaseException:
                if not found:
                    self._pool.delete(base)
                raise
            if packed_volume(base) in names:
                self._pool.delete(packed_volume(base))
        return version

    def _is_damaged(self, version: Version) -> bool:
        """Whether the version's base is there and has another content now, as far as can be seen.

        Then the new disk takes its place, and all versions on it are whole again.
        """
        base = base_volume(version.digest)
        if base not in self._pool.names():
            return False
        damaged = self._pool.digest(base, version.digest) not in (None, version.digest)
        if damaged:
            events.note(f"{base} was damaged, and is replaced by this disk")
        return damaged

    def _share(self, version: Version, file: Path) -> None:
        """Have a new base share its blocks with the bases there are; it is as good without that."""
        from poclab.disks import dedupe

        directory = Path(self._pool.directory)
        # Where the pool is reached through libvirt alone, files are staged elsewhere.
        if directory not in file.parents or base_volume(version.digest) in self._pool.names():
            return
        image = version.ref.image
        there = sorted(self.versions(), key=lambda item: (item.ref.image == image, item.created))
        digests = dict.fromkeys(
            digest for item in there[::-1] for digest in (item.digest, *item.parents)
        )
        others = [dedupe.Disk(digest, directory / base_volume(digest)) for digest in digests]
        if not others or not dedupe.possible(file.parent):
            return
        try:
            events.step("share blocks", others=len(others))
            shared = dedupe.share(dedupe.Disk(version.digest, file), others, str(directory))
        except OSError as error:
            events.debug(f"{version.ref} shares no blocks: {error}")
            return
        if shared:
            events.note(f"{version.ref} shares {format_size(shared)} with other versions")

    def tag(self, source: Ref, target: Ref) -> Version:
        """Give a version a second name.

        Raises:
            PoclabError: there is no such version, or the new name is another version's.
        """
        with self.changing():
            version = replace(self.get(source), ref=target, protected=False)
            present = self.find(target)
            if present and present.digest == version.digest:
                return present
            self.refuse_existing(target)
            manifest = encode(version)
            events.step("manifest", version=str(target))
            self._pool.write(manifest_volume(target), manifest)
            return version

    def remove(self, ref: Ref, used: frozenset[str] = frozenset()) -> bool:
        """Remove a version, and its base when nothing else has it; call within `changing`.

        Args:
            ref: the version.
            used: bases that domains stand on; these stay.

        Returns:
            Whether the base disk went too.

        Raises:
            PoclabError: there is no such version.
        """
        base, manifest = base_volume(self.get(ref).digest), manifest_volume(ref)
        needed, _ = self._survey(used, without=manifest)
        events.step("remove manifest", version=str(ref))
        self._pool.delete(manifest)
        if base in needed:
            return False
        events.step("remove base", volume=base)
        self._pool.delete(base)
        self._pool.delete(packed_volume(base))
        return True

    # --- garbage -----------------------------------------------------------------------

    def garbage(self, used: frozenset[str] = frozenset()) -> list[str]:
        """Volumes that an interrupted command left: manifests that do not count, lone bases.

        Args:
            used: bases that domains stand on; these are never garbage.
        """
        needed, damaged = self._survey(used)
        there = self._pool.names()
        names = [str(name) for name in volumes.known(there, Kind.BASE)]
        # Of a packed base beside the plain one packing or unpacking was cut short: both are whole.
        needed |= {packed_volume(name) for name in needed.difference(names)}
        return [name for name in names if name not in needed] + damaged

    def holds_all(self) -> bool:
        """Whether there is a manifest that may name any base: newer, damaged, or unreadable."""
        manifests = volumes.known(self._pool.names(), Kind.MANIFEST)
        return any(self._stored(Ref(name.image, name.name)).holds for name in manifests)

    def _survey(self, used: frozenset[str], without: str = "") -> tuple[set[str], list[str]]:
        """The bases that something needs, one manifest aside, and the manifests that do not count.

        What decides over deletion goes by what was read, never by what could not be read.
        """
        names = self._pool.names()
        needed = set(used)
        damaged: list[str] = []
        for name in volumes.known(names, Kind.MANIFEST):
            if str(name) == without:
                continue
            found = self._stored(Ref(name.image, name.name))
            if found.version:
                needed.update(bases(found.version))
            elif found.holds:
                # What it stands on cannot be known: every base may be it.
                needed.update(map(str, volumes.known(with_packed(names), Kind.BASE)))
            elif not found.gone:
                damaged.append(str(name))
        return needed, damaged
