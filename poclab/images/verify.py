"""Use case: see whether versions still are what was stored. Every byte is read, nothing changed.

A manifest's checksum covers all its fields. Its digest is that of the base's file as a whole,
header and unused space included, as it was when it was adopted; a packed one is unpacked on the
way and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poclab.core import events, hints
from poclab.core.plaintext import plain
from poclab.core.units import KIB, MIB
from poclab.disks import compression, stdin
from poclab.disks.digest import Digester
from poclab.disks.qcow2_header import Head, read_head
from poclab.model.version import Ref, Version
from poclab.model.version_volumes import base_volume, manifest_volume
from poclab.store.reader import reading
from poclab.store.versions import Store, Stored
from poclab.virt.errors import GoneError
from poclab.virt.host import Host

OK, DAMAGED, UNKNOWN = "ok", "damaged", "unknown"
_TELL = 16 * MIB  # how often progress is told
_HEAD = 64 * KIB  # the first cluster of a qcow2 file


@dataclass(frozen=True)
class VerifyRow:
    """A line of `poclab image verify`; the fields are the JSON's keys.

    Attributes:
        name: the image.
        tag: the tag.
        digest: what the base disk must have; empty where the manifest does not tell.
        result: "ok", "damaged", or "unknown" where this poclab cannot tell.
        problem: what is wrong, or an empty string.
        fix: what to do about it, or an empty string.
    """

    name: str
    tag: str
    digest: str
    result: str
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Content:
    """What was read of a base.

    Attributes:
        digest: its digest, `ALGORITHM:HEX`.
        size: how many bytes it has.
        head: what its header says, or None when it is no qcow2 file.
    """

    digest: str
    size: int
    head: Head | None


def verify(host: Host, wanted: Sequence[Ref | str] = ()) -> list[VerifyRow]:
    """Read versions and compare them with what was stored.

    Args:
        host: where they are.
        wanted: versions, or images by name for all versions of them; none for all there are.

    Raises:
        PoclabError: one of them is not there, or libvirt does not answer.
    """
    store = Store(host.pool, host.uri)
    with store.reading():
        found = store.manifests()
    chosen = _chosen(store, found, wanted)
    work = _Reading(host, store, found)
    return [row for item in chosen if (row := work.row(item))]


def _chosen(store: Store, found: list[Stored], wanted: Sequence[Ref | str]) -> list[Stored]:
    for name in wanted:
        if not any(name in (item.ref, item.ref.image) for item in found):
            # It says which ones there are.
            store.get(name if isinstance(name, Ref) else Ref(name, "TAG"))
    return [item for item in found if not wanted or {item.ref, item.ref.image} & set(wanted)]


class _Reading:
    """Reads each base once, however many versions stand on it."""

    def __init__(self, host: Host, store: Store, found: Iterable[Stored]) -> None:
        self._host = host
        self._store = store
        self._tops = {item.version.digest: item.version for item in found if item.version}
        self._read: dict[str, Content | str] = {}

    def row(self, item: Stored) -> VerifyRow | None:
        """The line of a version; None when it was removed meanwhile."""
        ref, version = item.ref, item.version
        if version is None:
            return broken_manifest(item)
        chain = (version.digest, *version.parents)
        for one, below in zip(chain, (*version.parents, ""), strict=True):
            maker = self._tops.get(one)
            fix = ""
            try:
                problem = self._problem(ref, one, below, maker)
                fix = advice(maker, one) if problem else ""
            except GoneError:
                if manifest_volume(ref) not in self._host.pool.names():
                    events.debug(f"{ref} was removed meanwhile")
                    return None
                problem, fix = "is gone", advice(maker, one, gone=True)
            if problem:
                whose = "its disk" if one == version.digest else f"below it {base_volume(one)}"
                line = f"{whose} {problem}"
                return VerifyRow(ref.image, ref.tag, version.digest, DAMAGED, line, fix)
        return VerifyRow(ref.image, ref.tag, version.digest, OK)

    def _problem(self, ref: Ref, digest: str, below: str, top: Version | None) -> str:
        if digest not in self._read:
            try:
                self._read[digest] = self._look(ref, digest, top.size if top else None)
            except compression.DamagedError as error:
                self._read[digest] = f"cannot be unpacked: {plain(error.why)}"
            except OSError as error:
                self._read[digest] = f"cannot be read: {error.strerror or error}"
        found = self._read[digest]
        return found if isinstance(found, str) else fault(found, digest, below, top)

    def _look(self, ref: Ref, digest: str, size: int | None) -> Content:
        with reading(self._host, self._store, digest) as found:
            return read(found, digest, f"verify {ref}", size)


def read(
    found: Iterable[bytes | memoryview], like: str, what: str, size: int | None = None
) -> Content:
    """Digest a disk's bytes as they come; none are kept but the header.

    Args:
        found: the bytes, in order.
        like: a digest to compute another one like.
        what: what to call it while it goes on.
        size: how many there should be, if that is known.
    """
    state = Digester(like)
    head = b""
    done = told = 0
    for piece in found:
        state.update(piece)
        if len(head) < _HEAD:
            head += bytes(piece[: _HEAD - len(head)])
        done += len(piece)
        if not told or done - told >= _TELL:
            events.progress(what, done, size, bytes=True)
            told = done
    return Content(str(state), done, read_head(head))


# --- what is wrong, and what helps; pure ---------------------------------------------------


def fault(found: Content, digest: str, below: str, top: Version | None) -> str:
    """What is wrong with a base, or an empty string.

    Args:
        found: what was read.
        digest: what it must have.
        below: the digest of what it must stand on, or an empty string.
        top: the version whose own disk it is, if there still is one.
    """
    if top and found.size != top.size:
        return f"has {found.size} bytes, {top.size} were stored"
    if found.digest != digest:
        return f"was changed: its digest is {found.digest}"
    if found.head is None:
        return "is no qcow2 disk"
    backing = base_volume(below) if below else ""
    if found.head.backing != backing:
        stands = f"stands on {plain(found.head.backing, 100) or 'nothing'}"
        return f"{stands}, by the manifest on {backing or 'nothing'}"
    if top and found.head.virtual_size != top.virtual_size:
        return f"has a size of {found.head.virtual_size}, by the manifest {top.virtual_size}"
    return ""


def advice(top: Version | None, digest: str, *, gone: bool = False) -> str:
    """What brings a base back.

    Args:
        top: the version whose own disk it is, if there still is one.
        digest: the base's digest.
        gone: whether there is no file at all, so that the version's name is free.
    """
    backup = f"put {base_volume(digest)} back from a backup"
    if top is None or top.origin.kind not in ("built", "imported"):
        return backup
    image, tag = top.ref.image, top.ref.tag if gone else "NEWTAG"
    if top.origin.kind == "built":
        # The cache would give the same disk again, were it not told otherwise.
        fresh = "" if gone else " --no-cache"
        return f"build it again: poclab image build {image} --tag {tag}{fresh}; or {backup}"
    known = ("--digest", top.origin.digest) if top.origin.digest else ()
    new = f"{image}:{tag}"
    # The name of a file may be such that no shell can be given it.
    instead = hints.command("poclab", "image", "import", new, "FILE", *known)
    source = top.origin.source
    if source == stdin.NAME:
        return f"import it again: {instead}; or {backup}"
    file = f"./{source}" if source.startswith("-") else source
    words = ("poclab", "image", "import", new, file, *known)
    return f"import it again: {hints.command(*words, otherwise=instead)}; or {backup}"


def broken_manifest(item: Stored) -> VerifyRow:
    """The line of a version whose manifest does not tell what it is."""
    ref = item.ref
    if item.newer:
        problem, fix = "a newer poclab made it", "verify it with that one"
        return VerifyRow(ref.image, ref.tag, "", UNKNOWN, problem, fix)
    if item.holds:
        fix = (
            f"put {manifest_volume(ref)} back from a backup; `poclab doctor` says how to remove it"
        )
        return VerifyRow(ref.image, ref.tag, "", DAMAGED, f"its manifest is bad: {item.fault}", fix)
    fix = (
        f"put {manifest_volume(ref)} back from a backup before the next image build, import or rm"
        " removes it and its disk; or build or import it again"
    )
    return VerifyRow(ref.image, ref.tag, "", DAMAGED, f"its manifest is bad: {item.fault}", fix)
