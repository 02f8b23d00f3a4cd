"""Disk files: what a stranger's file is, and what qemu-img does for poclab.

A disk from outside is hostile until shown otherwise: its header may name other files that
QEMU would open. So the header is read first (`poclab.formats`), and only a file that stands
alone ever reaches qemu-img, always as one given format (no probing) and under resource limits.

Paths are handed to qemu-img absolute: block.c's path_has_protocol() looks for a `:` before
the first `/`, and `json:` counts at the very beginning only, so a path that begins with `/`
is a path and nothing else.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from poclab import events
from poclab.errors import PoclabError
from poclab.files import writing_out
from poclab.names import shown
from poclab.qcow2_header import backing_file
from poclab.run import CommandFailed, runner
from poclab.units import GIB, MIB, format_size

if TYPE_CHECKING:
    from poclab.formats import DiskInfo, Part

_INFO_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 30}
# A check walks all of the metadata: 1 GiB holds the reference counts of about 30 TiB of data.
_CHECK_LIMITS = {resource.RLIMIT_AS: 1024 * MIB, resource.RLIMIT_CPU: 600}
# Address space: buffers, thread stacks and the tables, which the readers have bounded.
_CONVERT_MEMORY = 2 * GIB
_UNCHECKED = 1  # qemu-img(1): the check was not completed because of internal errors
_HOURS = 6 * 3600.0
_SECTOR = 512


# --- inspection -------------------------------------------------------------------------


def inspect(
    path: Path, expected: str | None = None, *, part: Part | None = None, name: str = ""
) -> DiskInfo:
    """Find out what a disk file is, without letting it reach any other file.

    A raw file has no signature of its own. It is taken for a disk when it has an MBR or a
    GPT, or when the caller says `expected="raw"`; a size that is no multiple of 512 is
    rounded up, as QEMU does.

    Args:
        path: the file.
        expected: QEMU's name of a format to insist on.
        part: where in the file the disk is, when it is not the whole file.
        name: what to call it in messages, instead of the file's name.

    Raises:
        PoclabError: it is no file, no disk, a format poclab does not take, damaged, or it
            refers to another file.
    """
    from poclab.formats import opened, read  # a reset makes overlays, and needs none of it

    name = shown(name or path.name, 200)
    with opened(path, name, part) as window:
        found = read(window, expected)
    _agree(path, found, name, part)
    return found


def _agree(path: Path, found: DiskInfo, name: str, part: Part | None) -> None:
    """Have qemu-img read the file too: it must see the same disk, standing alone and whole."""
    argv = ["qemu-img", "info", "--output=json", *_reading(path, found.format, part)]
    result = runner().run(argv, check=False, timeout=120, limits=_INFO_LIMITS)
    if result.code != 0:
        raise _refused(name, f"qemu-img cannot read it: {_reason(result.last_line)}")
    info = json.loads(result.stdout)
    details = info.get("format-specific", {}).get("data", {})
    if (
        info.get("backing-filename")
        or details.get("data-file")
        or info.get("encrypted")
        or len(details.get("extents", [])) > 1
    ):
        raise _refused(name, "it refers to another file or is encrypted")
    if info["virtual-size"] != found.virtual_size:
        raise _refused(name, f"its size is unclear: {found.virtual_size} or {info['virtual-size']}")
    if found.format in _CHECKED:
        _check(path, found.format, part, name)


# Formats whose metadata qemu-img can check; the readers of poclab.formats check vpc's.
_CHECKED = ("qcow2", "vmdk", "vdi", "vhdx")


def check(path: Path) -> None:
    """Check the metadata of a qcow2 file; its data is not looked at (see `digest.file_digest`).

    Raises:
        PoclabError: it is damaged or truncated, or another program holds it.
    """
    _check(path, "qcow2", None, shown(path.name, 200), ours=True)


def _check(path: Path, form: str, part: Part | None, name: str, *, ours: bool = False) -> None:
    argv = ["qemu-img", "check", *_reading(path, form, part)]
    result = runner().run(argv, check=False, timeout=1200, limits=_CHECK_LIMITS)
    # qemu-img(1): 0 fine, 2 corrupt, 3 leaked clusters, which waste space and harm nothing.
    if result.code not in (0, 3):
        lines = (result.stdout + result.stderr).splitlines()
        why = next((x for x in lines if x.startswith("ERROR")), result.last_line)
        fix = f", or try: qemu-img check -r all -f {form} FILE" if form == "qcow2" else ""
        if result.code == _UNCHECKED and ours:
            raise PoclabError(f"{name} cannot be checked", why=_reason(result.last_line))
        raise PoclabError(f"{name} is damaged", why=_reason(why), fix=f"copy it again{fix}")


def _refused(name: str, why: str) -> PoclabError:
    return PoclabError(f"{name} is not a disk poclab takes", why=why)


def _reading(path: Path, form: str, part: Part | None) -> list[str]:
    """The arguments with which qemu-img reads a disk as the one format it has."""
    if part is None and form != "vpc":
        return ["-f", form, _plain(path)]
    options = {"driver": form}
    if form == "vpc":
        # Without this QEMU goes by the geometry for some programs' disks, and cuts their end.
        options["force_size_calc"] = "current_size"
    below = "file."
    if part is not None:
        options |= {
            "file.driver": "raw",
            "file.offset": str(part.offset),
            "file.size": str(part.size),
        }
        below = "file.file."
    options |= {f"{below}driver": "file", f"{below}filename": _plain(path)}
    # QEMU's option syntax: a comma in a value is written twice.
    return ["--image-opts", ",".join(f"{k}={v.replace(',', ',,')}" for k, v in options.items())]


def read_sectors(path: Path, sector: int, count: int) -> bytes:
    """Sectors of 512 bytes as a guest sees them of a qcow2 file of poclab's own.

    Raises:
        PoclabError: they are not there, or qemu-img cannot read them.
    """
    name = _plain(path).replace(",", ",,")
    options = f"driver=raw,offset={sector * _SECTOR},size={count * _SECTOR},"
    options += f"file.driver=qcow2,file.file.driver=file,file.file.filename={name}"
    with tempfile.NamedTemporaryFile(dir=path.parent) as target:
        argv = ["qemu-img", "convert", "--image-opts", "-O", "raw", options, target.name]
        try:
            runner().run(argv, timeout=60)
        except CommandFailed as error:
            raise PoclabError(
                f"{shown(path.name, 200)} cannot be read", why=_reason(error.result.last_line)
            ) from error
        # qemu-img writes to the file in place, so the open one has it.
        return Path(target.name).read_bytes()


# --- making -----------------------------------------------------------------------------


def convert_to_qcow2(
    source: Path,
    source_format: str,
    target: Path,
    *,
    part: Part | None = None,
    at_most: int | None = None,
    backing: Path | None = None,
) -> None:
    """Copy a disk into a new qcow2 file: sparse, uncompressed, without internal snapshots.

    Progress is told as events. The target is removed again when anything goes wrong.

    Args:
        source: an inspected disk.
        source_format: QEMU's name of its format.
        target: the file to make; must not exist.
        part: where in the source the disk is, when it is not the whole file.
        at_most: bytes the target may have, for a source that is not trusted; qemu-img's
            memory is limited as well then.
        backing: the qcow2 disk that the source stands on directly, for a copy that stands on
            it too and holds no more than the source itself.

    Raises:
        PoclabError: qemu-img failed, or the target exists.
    """
    if target.exists():
        raise PoclabError(f"{target} exists already")
    argv = ["qemu-img", "convert", "-p", "-O", "qcow2", "-o", "compat=1.1"]
    if backing is not None:
        argv += ["-B", _plain(backing), "-F", "qcow2"]
    argv += [*_reading(source, source_format, part), _plain(target)]
    if at_most is not None:
        # prlimit(1), not limits set between fork and exec: other threads may run here.
        # No core: the name of a core file is not ours to clean up.
        argv = ["prlimit", f"--as={_CONVERT_MEMORY}", f"--fsize={at_most}", "--core=0", *argv]
    last = [""]

    def line(text: str) -> None:
        match = _PERCENT.search(text)
        if match:
            events.progress("convert", float(match[1]), 100.0)
        elif text.strip():
            last[0] = text.strip()

    try:
        with writing_out(target):
            code = runner().stream(argv, line, timeout=_HOURS, env={"MALLOC_ARENA_MAX": "4"})
        if code != 0:
            raise _convert_error(source, target, code, last[0], at_most)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def copy_layer(source: Path, base: Path, target: Path) -> None:
    """Copy all that a disk holds above another one into a new qcow2 file over that one.

    The new file names the disk below without a directory: both are to lie side by side.

    Args:
        source: a qcow2 file of poclab's own that no VM runs on.
        base: a qcow2 file below it, directly or not.
        target: the file to make; must not exist.

    Raises:
        PoclabError: qemu-img failed, the copy is damaged, or the target exists.
    """
    below = Path(source.parent, backing_file(source))
    convert_to_qcow2(source, "qcow2", target, backing=below)
    try:
        if below != base:
            # With -B convert takes the topmost file alone (img_convert() in qemu-img.c), whatever
            # is named: what lies between comes by comparing.
            _rebase(target, _plain(base))
        check(target)
        _rebase(target, base.name, "-u")  # the name alone: the content is the same
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _rebase(path: Path, backing: str, *options: str) -> None:
    argv = ["qemu-img", "rebase", *options, "-f", "qcow2", "-F", "qcow2", "-b", backing]
    try:
        runner().run([*argv, _plain(path)], timeout=_HOURS)
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be put on {shown(backing, 200)}",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def merge(path: Path) -> None:
    """Write all that an overlay holds into the disk that it is on; no VM may run on it.

    The overlay stays as it is: until nothing names it any more, both have the same content.

    Raises:
        PoclabError: qemu-img failed; it can be done again.
    """
    argv = ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", _plain(path)]
    try:
        runner().run(argv, timeout=_HOURS)
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be merged into the disk below",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def is_blank(path: Path) -> bool:
    """Whether nothing was ever written to a qcow2 file; no VM may run on it.

    Raises:
        PoclabError: it is damaged.
    """
    argv = ["qemu-img", "check", "--output=json", *_reading(path, "qcow2", None)]
    result = runner().run(argv, check=False, timeout=1200, limits=_CHECK_LIMITS)
    if result.code not in (0, 3):
        raise PoclabError(f"{shown(path.name, 200)} is damaged", why=_reason(result.last_line))
    # ImageCheck in qapi/block-core.json: left out when there is none.
    return not json.loads(result.stdout).get("allocated-clusters")


def _convert_error(
    source: Path, target: Path, code: int, text: str, at_most: int | None
) -> PoclabError:
    why, fix = _reason(text) or f"exit status {code}", ""
    if code == -signal.SIGXFSZ or "File too large" in text:
        why = f"it would become larger than the {format_size(at_most or 0)} that it can hold"
    elif "No space left" in text:
        fix = f"make room in {target.parent}"
    return PoclabError(f"{shown(source.name, 200)} cannot be converted", why=why, fix=fix)


def largest_copy(found: DiskInfo, stored: int) -> int:
    """Bytes that a qcow2 copy of an honest disk has at most.

    Data that is not packed is in the copy once at most; tables that name the same data many
    times would fill the pool.

    Args:
        found: the disk.
        stored: bytes of its file.
    """
    most = found.virtual_size if found.packed else min(found.virtual_size, stored)
    # qcow2's own tables: 8 bytes a cluster of 64 KiB for its place and 2 for its use.
    return most + most // 4096 + found.virtual_size // 4096 + 16 * MIB


_PERCENT = re.compile(r"\(([0-9.]+)/100%\)")


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 file.

    Args:
        path: the file to make; must not exist.
        size: bytes the guest sees.

    Raises:
        PoclabError: it exists, or cannot be made.
    """
    _create(path, [], size)


def create_overlay(path: Path, backing: Path, backing_format: str, size: int | None = None) -> None:
    """Make a qcow2 file that holds what differs from another disk.

    Args:
        path: the file to make; must not exist.
        backing: the disk below; its absolute path is recorded.
        backing_format: its format.
        size: bytes the guest sees, or None for as many as the disk below has.

    Raises:
        PoclabError: it exists, or cannot be made.
    """
    _create(path, ["-b", _plain(backing), "-F", backing_format], size)


def resize(path: Path, size: int) -> None:
    """Enlarge a qcow2 file; never shrinks one.

    Args:
        path: the file.
        size: bytes the guest is to see.

    Raises:
        PoclabError: qemu-img refuses.
    """
    try:
        runner().run(["qemu-img", "resize", "-q", "-f", "qcow2", _plain(path), str(size)])
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be enlarged",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def _create(path: Path, options: list[str], size: int | None) -> None:
    if path.exists():
        raise PoclabError(f"{path} exists already")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options, _plain(path)]
    try:
        runner().run(argv if size is None else [*argv, str(size)])
    except CommandFailed as error:
        raise PoclabError(
            f"{shown(path.name, 200)} cannot be made",
            why=_reason(error.result.last_line),
            fix=_room(path, error.result.last_line),
        ) from error


def _room(path: Path, text: str) -> str:
    """What to do about a disk that is full, where a message is about that."""
    return f"make room in {path.absolute().parent}" if "No space left" in text else ""


def _plain(path: Path) -> str:
    """A path that qemu-img takes for a path, whatever characters it has."""
    return str(path.absolute())


def _reason(text: str) -> str:
    """The end of a qemu-img message: what is wrong, without the program and the file."""
    return text.removeprefix("qemu-img: ").strip()[:300]
