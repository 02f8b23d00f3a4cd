"""Use case: a disk from elsewhere (a file, an OVA, standard input) becomes a version."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from poclab.core import events, free_space
from poclab.core.errors import PoclabError, UsageError
from poclab.core.files import sync
from poclab.core.plaintext import shown
from poclab.core.units import GIB
from poclab.disks import digest, inspection, pool_disks, profile_guess, source_file
from poclab.disks.formats import DiskInfo, Window, detect, read
from poclab.disks.profile_guess import Guess
from poclab.disks.source_file import Source
from poclab.disks.stdin import DEFAULT_LIMIT, NAME, spool
from poclab.model.names import is_user
from poclab.model.version import Origin, Profile, Ref, Version

if TYPE_CHECKING:
    from poclab.disks.ova import Digest
    from poclab.store.versions import Store

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
class ImportRequest:
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
class _Found:
    """A file that has been looked at.

    Attributes:
        source: the file.
        name: what to call it.
        disk: what disk it is.
        window: where in the file the disk is.
        member: the disk's name in an OVA.
        digests: what the OVA's manifest says.
        system: the operating system by the OVA's description.
    """

    source: Source
    name: str
    disk: DiskInfo
    window: Window
    member: str = ""
    digests: tuple[Digest, ...] = ()
    system: str = ""


def import_disk(store: Store, ref: Ref, request: ImportRequest) -> Version:
    """Publish a copy of a disk as a version; the file itself is left alone.

    The copy is made anew by qemu-img, a qcow2 too: internal snapshots, unused space and
    whatever else its header carried stay behind. The digest is computed meanwhile, and
    nothing is published unless everything holds.

    Args:
        store: where the version goes.
        ref: its name.
        request: what is to be imported.

    Raises:
        UsageError: the format, the digest or the choice of a disk is wrong.
        PoclabError: the version exists, the file is no disk poclab takes or not the one
            that was meant, or there is no room.
    """
    wanted = _wanted_digest(request.digest)
    if not is_user(request.user):
        raise UsageError(
            f"invalid user name {shown(request.user)}",
            why="it must be printable, not begin with - and have at most 256 characters",
            fix="give the account to log in as: --user USER",
        )
    if request.format is not None and request.format not in FORMATS:
        raise UsageError(
            f"poclab imports no {shown(request.format)}",
            why=f"it imports {', '.join(FORMATS)}",
            fix="convert it: qemu-img convert -O qcow2 FILE NEW.qcow2",
        )
    store.refuse_existing(ref)
    with ExitStack() as stack:
        known = None
        if isinstance(request.source, Path):
            name = request.source.name
            file = stack.enter_context(source_file.opening(request.source, shown(name, 200)))
            found = _look(file, name, request)
            work = stack.enter_context(store.workdir())
            if file.foreign:
                found = _look(_private(file, work, stack), name, request)
            _check_room(found, work)
        else:
            work = stack.enter_context(store.workdir())
            events.step("read standard input")
            known = spool(
                request.source,
                work / "input",
                limit=request.size_limit,
                expected=FORMATS[request.format] if request.format else None,
                like=wanted or digest.DISKS,
            )
            _compare(NAME, known, wanted)
            file = stack.enter_context(source_file.opening(work / "input", NAME))
            found = _look(file, NAME, request)
        inspection.agree(found.window, found.disk)
        target = work / "disk.qcow2"
        identity, made = _convert(found, target, wanted, known)
        profile, how = _profile(target, found.system, request)
        inputs = {"format": found.disk.format, "profile": how}
        if found.member:
            inputs["disk"] = found.member
        events.step("publish", version=str(ref))
        return store.publish(
            ref,
            target,
            virtual_size=found.disk.virtual_size,
            profile=profile,
            origin=Origin("imported", source=found.name, digest=identity, inputs=inputs),
            user=request.user,
            digest=made,
        )


def _look(file: Source, name: str, request: ImportRequest) -> _Found:
    """Find out what a file is by its bytes; no other program sees it yet."""
    events.step("inspect", file=name)
    form = FORMATS[request.format] if request.format else None
    window = file.window
    kind = detect(window)
    if kind == "tar" and form in (None, "ova"):
        from poclab.disks import ova

        package = ova.look(window, request.disk)
        member = package.disk.name
        inside = window.part(package.disk.part, shown(f"{name}: {member}", 200))
        return _Found(file, name, read(inside), inside, member, package.digests, package.system)
    if form == "ova":
        raise PoclabError(f"{window.name} is no OVA", why="it is no tar archive")
    if request.disk is not None:
        raise UsageError("--disk chooses a disk of an OVA", why=f"{window.name} is none")
    return _Found(file, name, read(window, form), window)


def _private(file: Source, work: Path, stack: ExitStack) -> Source:
    """A copy of a file that another user could write to while it is checked and converted."""
    events.step("copy the file", file=file.window.name)
    source_file.copied(file, work / "input", place=work.parent)
    return stack.enter_context(source_file.opening(work / "input", file.window.name))


def _convert(found: _Found, target: Path, wanted: str | None, known: str | None) -> tuple[str, str]:
    """Make the qcow2 file and give the source's digest and its own.

    The source is digested while it is converted, and what is left of that while the copy is. Its
    digest is an empty string where nobody asked for it and it would take much longer than the
    disk: a digest has no way around the zeros that a hole stands for.

    Args:
        found: what to convert.
        target: the file to make.
        wanted: the digest the file must have, if any.
        known: its digest if that was computed before.
    """
    window = found.source.window
    whole = known is None and (wanted is not None or _is_mostly_data(window))
    algorithm = digest.algorithm(wanted or digest.DISKS)
    asked = [digest.Wanted(algorithm)] if whole else []
    asked += [
        digest.Wanted(one.algorithm, one.member.offset, one.member.size) for one in found.digests
    ]
    events.step("convert to qcow2", file=window.name)
    with ExitStack() as stack:
        reading = digest.computing(window.descriptor, *asked, name=window.name)
        running = stack.enter_context(reading)
        inspection.copy(found.window, found.disk, target)
        events.step("digest", file=window.name)
        made = stack.enter_context(digest.computing(target, digest.Wanted(digest.DISKS)))
        sync(target)  # the pool does so at last; here it goes on beside the digest
        results = running.results()
        found.source.check_unchanged()
        identity = f"{algorithm}:{results.pop(0)}" if whole else known or ""
        _compare(found.name, identity, wanted)
        _compare_members(found, results)
        pool_disks.check(target)
        return identity, f"{digest.DISKS}:{made.results()[0]}"


def _compare_members(found: _Found, results: list[str]) -> None:
    for one, result in zip(found.digests, results, strict=True):
        if result != one.value:
            raise PoclabError(
                f"{shown(one.member.name)} in {shown(found.name, 200)} is damaged",
                why=f"its {one.algorithm} is not what the manifest says",
                fix="download it again",
            )


def _is_mostly_data(window: Window) -> bool:
    """Whether a file has more data than holes, or few of these."""
    found = os.fstat(window.descriptor)
    return found.st_size - found.st_blocks * 512 <= max(found.st_blocks * 512, GIB)


def _compare(name: str, found: str, wanted: str | None) -> None:
    if wanted not in (None, found):
        raise PoclabError(
            f"{shown(name, 200)} is not the file that was meant",
            why=f"its digest is {found}",
            fix="download it again, or check the digest",
        )


def _profile(target: Path, system: str, request: ImportRequest) -> tuple[Profile, str]:
    """The profile and, for the record, where it comes from."""
    if request.profile is not None:
        return request.profile, "given"
    events.step("look at the disk")
    guess = profile_guess.guess(target, system)
    if not guess.sure and request.choose is not None:
        return request.choose(guess), "asked"
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


def _check_room(found: _Found, work: Path) -> None:
    # st_blocks: what is stored, holes left out.
    stored = os.fstat(found.window.descriptor).st_blocks * 512
    needed = max(1, min(stored, found.window.size))
    free_space.check(work, shown(found.name, 200), needed=needed, place=work.parent)
