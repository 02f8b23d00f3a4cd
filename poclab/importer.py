"""Use case: a disk from elsewhere (a file, an OVA, standard input) becomes a version."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from poclab import content, digest, disk, events
from poclab.content import Guess
from poclab.errors import PoclabError, UsageError
from poclab.files import sync
from poclab.formats import DiskInfo, Part, detect, opened
from poclab.model import Origin, Profile, Ref, Version
from poclab.names import is_user, shown
from poclab.spool import DEFAULT_LIMIT, NAME, spool
from poclab.units import GIB, format_size

if TYPE_CHECKING:
    from poclab.ova import Digest
    from poclab.store import Store

# What a user may say, and QEMU's name for it.
FORMATS = {
    "qcow2": "qcow2",
    "raw": "raw",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "vpc": "vpc",
    "vhdx": "vhdx",
    "ova": "ova",
}
_DIGEST = re.compile(r"(?:(sha256|blake3):)?([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Wish:
    """What is to be imported, and how.

    Attributes:
        source: a file, or an open stream.
        profile: which devices the guest can drive; None has it found out.
        user: the user to log in as.
        format: a key of `FORMATS` to insist on it; a raw disk without a partition table
            must be called raw.
        digest: the digest the file must have, `sha256:HEX` or `blake3:HEX`; without an algorithm
            it is SHA-256.
        disk: which disk of an OVA with several.
        size_limit: bytes a stream may have.
        choose: asks for a profile when the disk does not show it; None takes the guess.
    """

    source: Path | BinaryIO
    profile: Profile | None = None
    user: str = "root"
    format: str | None = None
    digest: str | None = None
    disk: str | None = None
    size_limit: int = DEFAULT_LIMIT
    choose: Callable[[Guess], Profile] | None = None


@dataclass(frozen=True)
class _Source:
    """A file that has been looked at.

    Attributes:
        file: the file that is read.
        name: what to call it.
        disk: what disk it is.
        part: where in the file the disk is, for an OVA.
        member: the disk's name in the OVA.
        digests: what the OVA's manifest says.
        system: the operating system by the OVA's description.
    """

    file: Path
    name: str
    disk: DiskInfo
    part: Part | None = None
    member: str = ""
    digests: tuple[Digest, ...] = ()
    system: str = ""


def import_disk(store: Store, ref: Ref, wish: Wish) -> Version:
    """Publish a copy of a disk as a version; the file itself is left alone.

    The copy is made anew by qemu-img, a qcow2 too: internal snapshots, unused space and
    whatever else its header carried stay behind. The digest is computed meanwhile, and
    nothing is published unless everything holds.

    Args:
        store: where the version goes.
        ref: its name.
        wish: what is to be imported.

    Raises:
        UsageError: the format, the digest or the choice of a disk is wrong.
        PoclabError: the version exists, the file is no disk poclab takes or not the one
            that was meant, or there is no room.
    """
    wanted = _wanted_digest(wish.digest)
    if not is_user(wish.user):
        raise UsageError(
            f"invalid user name {shown(wish.user)}",
            why="it must be printable, not begin with - and have at most 256 characters",
            fix="give the account to log in as: --user USER",
        )
    if wish.format is not None and wish.format not in FORMATS:
        raise UsageError(
            f"poclab imports no {shown(wish.format)}",
            why=f"it imports {', '.join(FORMATS)}",
            fix="convert it: qemu-img convert -O qcow2 FILE NEW.qcow2",
        )
    store.refuse_existing(ref)
    with ExitStack() as stack:
        if isinstance(wish.source, Path):
            source, known = _look(wish.source, wish.source.name, wish), None
            work = stack.enter_context(store.workdir())
            _check_room(source, work)
        else:
            work = stack.enter_context(store.workdir())
            file = work / "input"
            events.step("read standard input")
            known = spool(
                wish.source,
                file,
                limit=wish.size_limit,
                raw=wish.format == "raw",
                like=wanted or digest.DISKS,
            )
            _compare(NAME, known, wanted)
            source = _look(file, NAME, wish)
        target = work / "disk.qcow2"
        found, made = _convert(source, target, wanted, known)
        profile, how = _profile(target, source.system, wish)
        inputs = {"format": source.disk.format, "profile": how}
        if source.member:
            inputs["disk"] = source.member
        events.step("publish", version=str(ref))
        return store.publish(
            ref,
            target,
            virtual_size=source.disk.virtual_size,
            profile=profile,
            origin=Origin("imported", source=source.name, digest=found, inputs=inputs),
            user=wish.user,
            digest=made,
        )


def _look(file: Path, name: str, wish: Wish) -> _Source:
    """Find out what the file is, without letting it reach any other file."""
    events.step("inspect", file=str(file))
    form = FORMATS[wish.format] if wish.format else None
    with opened(file, shown(name, 200)) as window:
        kind = detect(window)
    if kind == "tar" and form in (None, "ova"):
        from poclab import ova

        package = ova.look(file, wish.disk, name=name)
        part, member = package.disk.part, package.disk.name
        inside = disk.inspect(file, part=part, name=f"{name}: {member}")
        return _Source(file, name, inside, part, member, package.digests, package.system)
    if form == "ova":
        raise PoclabError(f"{shown(name, 200)} is no OVA", why="it is no tar archive")
    if wish.disk is not None:
        raise UsageError("--disk chooses a disk of an OVA", why=f"{shown(name, 200)} is none")
    return _Source(file, name, disk.inspect(file, form, name=name))


def _convert(
    source: _Source, target: Path, wanted: str | None, known: str | None
) -> tuple[str, str]:
    """Make the qcow2 file and give the source's digest and its own.

    The source is digested while it is converted, and what is left of that while the copy is. Its
    digest is an empty string where nobody asked for it and it would take much longer than the
    disk: a digest has no way around the zeros that a hole stands for.

    Args:
        source: what to convert.
        target: the file to make.
        wanted: the digest the file must have, if any.
        known: its digest if that was computed before.
    """
    before = _identity(source.file)
    whole = known is None and (wanted is not None or _is_mostly_data(source.file))
    algorithm = digest.algorithm(wanted or digest.DISKS)
    asked = [digest.Wanted(algorithm)] if whole else []
    asked += [
        digest.Wanted(one.algorithm, one.member.offset, one.member.size) for one in source.digests
    ]
    events.step("convert to qcow2", file=str(source.file))
    with ExitStack() as stack:
        running = stack.enter_context(digest.computing(source.file, *asked))
        stored = source.part.size if source.part else before[2]
        disk.convert_to_qcow2(
            source.file.absolute(),
            source.disk.format,
            target,
            part=source.part,
            at_most=disk.largest_copy(source.disk, stored),
        )
        events.step("digest", file=str(source.file))
        made = stack.enter_context(digest.computing(target, digest.Wanted(digest.DISKS)))
        sync(target)  # the pool does so at last; here it goes on beside the digest
        results = running.results()
        if _identity(source.file) != before:
            raise PoclabError(
                f"{shown(source.name, 200)} changed while it was read",
                fix="stop the VM or the download that writes to it, then import it again",
            )
        found = f"{algorithm}:{results.pop(0)}" if whole else known or ""
        _compare(source.name, found, wanted)
        _compare_members(source, results)
        disk.check(target)
        return found, f"{digest.DISKS}:{made.results()[0]}"


def _compare_members(source: _Source, results: list[str]) -> None:
    for one, result in zip(source.digests, results, strict=True):
        if result != one.value:
            raise PoclabError(
                f"{shown(one.member.name)} in {shown(source.name, 200)} is damaged",
                why=f"its {one.algorithm} is not what the manifest says",
                fix="download it again",
            )


def _is_mostly_data(file: Path) -> bool:
    """Whether a file has more data than holes, or few of these."""
    found = file.stat()
    return found.st_size - found.st_blocks * 512 <= max(found.st_blocks * 512, GIB)


def _compare(name: str, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise PoclabError(
            f"{shown(name, 200)} is not the file that was meant",
            why=f"its digest is {found}",
            fix="download it again, or check the digest",
        )


def _profile(target: Path, system: str, wish: Wish) -> tuple[Profile, str]:
    """The profile and, for the record, where it comes from."""
    if wish.profile is not None:
        return wish.profile, "given"
    events.step("look at the disk")
    guess = content.guess(target, system)
    if not guess.sure and wish.choose is not None:
        return wish.choose(guess), "asked"
    again = "" if guess.sure else "; if that is wrong, import it with --profile"
    events.note(f"profile {guess.profile}: {guess.reason}{again}")
    return guess.profile, f"guessed: {guess.reason}"


def _wanted_digest(text: str | None) -> str | None:
    if text is None:
        return None
    match = _DIGEST.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{shown(text)} is no digest",
            why="one has 64 hexadecimal digits, or sha256: or blake3: and these",
        )
    return f"{match[1] or 'sha256'}:{match[2].lower()}"


def _identity(file: Path) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to."""
    found = file.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check_room(source: _Source, work: Path) -> None:
    found = source.file.stat()
    # st_blocks: what is stored, holes left out.
    needed = min(found.st_blocks * 512, source.part.size if source.part else found.st_size)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PoclabError(
            f"there is no room for {shown(source.name, 200)}",
            why=f"{work.parent} has {format_size(free)}, it may take {format_size(needed)}",
            fix="make room there: poclab image rm, or another pool",
        )
