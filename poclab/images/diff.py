"""Use case: what changed from one version to another.

Where both container images are still there it is packages and files; else what the manifests
and the disks themselves tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from poclab.containers import podman
from poclab.containers.packages import File, Tree, read_tree
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.disks import fingerprints
from poclab.model.version import Ref, Version
from poclab.store.reader import reading
from poclab.store.versions import Store
from poclab.virt.host import Host

T = TypeVar("T")


@dataclass(frozen=True)
class DiffRow:
    """A line of `poclab image diff`; the fields are the JSON's keys.

    Attributes:
        kind: "package", "file", "version" (what the manifests say) or "disk".
        name: the package, the path, or the field.
        change: "added", "removed" or "changed".
        old: the version, or bytes for a file or a size; an empty string for what is added.
        new: the same in the other one; an empty string for what is removed.
    """

    kind: str
    name: str
    change: str
    old: str | int
    new: str | int


def diff(host: Host, old: Ref, new: Ref) -> list[DiffRow]:
    """Compare two versions.

    Args:
        host: where they are.
        old: the one.
        new: the other one.

    Raises:
        PoclabError: one of them is not there, or cannot be read.
    """
    store = Store(host.pool, host.uri)
    pair = store.get(old), store.get(new)
    rows = facts(*pair)
    if pair[0].digest == pair[1].digest:
        return rows
    images, why = _images(pair)
    if why:
        events.note(f"packages and files are not shown: {why}")
        return rows + _disks(host, store, *pair)
    before, after = map(_tree, images)
    for version, tree in zip(pair, (before, after), strict=True):
        if tree.note:
            events.note(f"packages of {version.ref} are not known: {tree.note}")
    return rows + trees(before, after)


# --- container images -------------------------------------------------------------------------


def _images(pair: tuple[Version, Version]) -> tuple[list[str], str]:
    """The IDs of the container images, or why they cannot be looked at."""
    found: list[str] = []
    for version in pair:
        origin = version.origin
        if origin.kind != "built":
            return [], f"{version.ref} was {origin.kind}, and has no container image"
        image = origin.inputs.get("image_id", "")
        try:
            if not image or not podman.exists(image):
                return [], f"the container image of {version.ref} is not in this user's storage"
        except PoclabError as error:
            return [], f"{error.what}{f' ({error.why})' if error.why else ''}"
        found.append(image)
    return found, ""


def _tree(image: str) -> Tree:
    with podman.exported(image) as stream:
        return read_tree(stream)


# --- disks --------------------------------------------------------------------------------------


def _disks(host: Host, store: Store, old: Version, new: Version) -> list[DiffRow]:
    """How much of the disks only one of them has: of all they stand on, wherever it lies."""
    with tempfile.TemporaryFile() as before, tempfile.TemporaryFile() as after:
        _fingerprint(host, store, old, new, before)
        _fingerprint(host, store, new, old, after)
        lost = fingerprints.missing(before, after) * fingerprints.BLOCK
        added = fingerprints.missing(after, before) * fingerprints.BLOCK
    return [DiffRow("disk", "in one only", "changed", lost, added)] if lost or added else []


def _fingerprint(
    host: Host, store: Store, version: Version, other: Version, target: BinaryIO
) -> None:
    """Write the digests of a disk's blocks, what both stand on left out."""
    for digest in (version.digest, *version.parents):
        if digest not in (other.digest, *other.parents):
            with reading(host, store, digest) as found:
                fingerprints.fingerprint_stream(found, target, _teller(version))


def _teller(version: Version) -> Callable[[int], None]:
    return lambda done: events.progress(f"compare {version.ref}", done, version.size, bytes=True)


# --- pure ---------------------------------------------------------------------------------------


def facts(old: Version, new: Version) -> list[DiffRow]:
    """What the manifests say differently."""

    def of(version: Version) -> dict[str, str | int]:
        origin = version.origin
        said: dict[str, str | int] = {
            "digest": version.digest,
            "size": version.size,
            "virtual_size": version.virtual_size,
            "created": version.created,
            "origin": f"{origin.kind} {origin.source}",
            "source_digest": origin.digest,
            "builder": origin.builder,
            "profile": str(version.profile),
            "user": version.user,
            "parents": " ".join(version.parents),
        }
        return {key: value for key, value in said.items() if value != ""}

    return _rows("version", of(old), of(new), lambda value: value)


def trees(old: Tree, new: Tree) -> list[DiffRow]:
    """What differs between two images: packages first, then files."""
    packages = _rows("package", old.packages, new.packages, lambda version: version)
    return packages + _rows("file", old.files, new.files, _size)


def _size(file: File) -> int:
    return file.size


def _rows(
    kind: str, old: Mapping[str, T], new: Mapping[str, T], show: Callable[[T], str | int]
) -> list[DiffRow]:
    """The keys whose values differ, sorted."""
    rows = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            rows.append(DiffRow(kind, name, "added", "", show(new[name])))
        elif name not in new:
            rows.append(DiffRow(kind, name, "removed", show(old[name]), ""))
        elif old[name] != new[name]:
            rows.append(DiffRow(kind, name, "changed", show(old[name]), show(new[name])))
    return rows
