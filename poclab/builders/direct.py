"""The direct builder: a disk from a container image with ordinary programs alone.

No privilege, no loop device, no mount, no network, no builder image. What comes out is a
GPT disk with systemd-boot, the image's own kernel and initramfs, and its files in an ext4
root partition that is the last one, so that it can grow with the disk. The same image and
request give the same bytes.
"""

from __future__ import annotations

import shutil
import time
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from poclab.builders import esp, rootfs
from poclab.builders.base import BuildRequest, Built, common_inputs, only_disks
from poclab.builders.kernel import Bootable, find_bootable
from poclab.containers import podman
from poclab.core import events, free_space
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown
from poclab.core.process import runner
from poclab.core.programs import missing
from poclab.core.units import MIB, format_size
from poclab.disks import pool_disks
from poclab.disks.digest import file_digest

_E2FSPROGS = ("mke2fs", "e2fsck")
_MTOOLS = ("mformat", "mmd", "mcopy")
_PROGRAMS = ("podman", "sfdisk", *_E2FSPROGS, *_MTOOLS, "qemu-img", "prlimit")
# Raised when this builder makes another disk of the same image.
FORMAT = "direct 2"
# An fstab has some lines; a larger one is left as it is.
_MAX_FSTAB = MIB
# FAT cannot tell times before 1980 and e2fsprogs takes 0 for "no time given".
_FIRST_TIME = 315619200  # 1980-01-02
# UUIDs of disks are derived in this namespace.
_NAMESPACE = uuid.UUID("9f0c0a3e-6a52-4f0e-8f5e-6f6f0a1d7c11")


class Direct:
    """Makes UEFI disks of container images that hold a kernel, an initramfs and an init."""

    name = "direct"

    def check(self, request: BuildRequest) -> None:
        """See that the programs are there; see `Builder.check`.

        Raises:
            UsageError: the request asks for what this builder cannot do.
            PoclabError: one is missing, or the host's processor is not known.
        """
        _check_request(request)
        esp.host_arch()
        rootfs.check_library()
        for program in _PROGRAMS:
            if runner().which(program) is None:
                raise missing(program)

    def inputs(self, request: BuildRequest) -> dict[str, str]:
        """What decides about the disk: the request, this module and the host's programs."""
        loader = esp.host_loader(esp.host_arch())
        found = common_inputs(request) | {"builder_version": FORMAT}
        # mke2fs(8): -V prints its version to standard error.
        found["e2fsprogs"] = _first_line(runner().run(["mke2fs", "-V"], check=False).stderr)
        if loader is not None:
            found["loader"] = file_digest(loader, "sha256")
        return found

    def build(self, request: BuildRequest) -> Built:
        """Build the disk; see `Builder.build`.

        Raises:
            PoclabError: the image cannot boot, does not fit, or a program failed.
        """
        arch = esp.host_arch()
        _check_space(request)
        try:
            return self._build(request, arch)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise _unwritable(request, f"{error.strerror}{where}") from error
        except PoclabError as error:
            # Each program has its own words around the C library's for ENOSPC.
            if _FULL in error.why.lower():
                raise _unwritable(request, error.why) from error
            raise

    def _build(self, request: BuildRequest, arch: esp.Arch) -> Built:
        work = request.workdir
        tar = work / "image.tar"
        podman.export(request.image_id, tar)
        events.step("look for kernel, initramfs and init", image=request.image)
        members = rootfs.listing(tar)
        bootable = _bootable(members, request)
        root = _completed(rootfs.Tree(tar, members), request)
        raw = _raw_disk(root, bootable, arch, request)
        # Two copies of the content are enough at any time.
        tar.unlink()
        target = work / "disk.qcow2"
        events.step("convert to qcow2", disk=str(target))
        pool_disks.convert_to_qcow2(raw, "raw", target)
        raw.unlink()
        return Built(target, {"kernel": bootable.kernel.version})


_FULL = "no space left on device"


def _unwritable(request: BuildRequest, why: str) -> PoclabError:
    full = _FULL in why.lower()
    fix = free_space.advice(request.workdir) if full else ""
    return PoclabError(f"the build cannot write in {request.workdir}", why=why, fix=fix)


@dataclass(frozen=True)
class _Root:
    """The root file system to be.

    Attributes:
        tree: its files.
        epoch: the newest file's time, which stands for the time of the build.
    """

    tree: rootfs.Tree
    epoch: int

    @property
    def members(self) -> rootfs.Members:
        """Its files by path."""
        return self.tree.members


def _check_request(request: BuildRequest) -> None:
    only_disks(request, Direct.name)
    if request.rootfs != "ext4":
        raise UsageError(
            f"the direct builder makes no {shown(request.rootfs)} root file system",
            why="it makes ext4",
            fix="write rootfs: ext4, or use builder: bootc-image-builder",
        )
    if request.blueprint or request.builder_image or request.builder_args:
        raise UsageError(
            "the direct builder takes no blueprint, builder image or builder arguments",
            fix="put it in the Containerfile, or use builder: bootc-image-builder",
        )
    for arg in request.kernel_args:
        if not arg.isprintable():
            raise UsageError(f"{shown(arg)} is no kernel argument")


def _check_space(request: BuildRequest) -> None:
    """Check that the work directory has room for the content twice, and half as much again.

    That goes by what podman says of the image's size; holes of sparse files are not in it.
    """
    size = podman.inspect(request.image_id).size
    needed = size * 5 // 2 + 256 * MIB
    what = f"the build, which takes about {format_size(needed)}"
    free_space.check(request.workdir, what, needed=needed, place=request.workdir.parent)


def _bootable(members: rootfs.Members, request: BuildRequest) -> Bootable:
    return find_bootable(
        rootfs.kinds(members, "file", "hardlink"),
        rootfs.kinds(members, "symlink"),
        request.kernel_args,
    )


def _completed(tree: rootfs.Tree, request: BuildRequest) -> _Root:
    newest = rootfs.newest(tree.members.values())
    # A file of the future would have the file system checked at every boot until then.
    epoch = max(_FIRST_TIME, min(newest, int(time.time())))
    rootfs.complete(tree.members, epoch)
    root = _Root(tree, epoch)
    _make_growable(root, _id(request, "root"))
    _order_networkd(root)
    _warn_of_machine_id(root, request.image)
    return root


def _warn_of_machine_id(root: _Root, image: str) -> None:
    """VMs with one machine ID ask a DHCP server for one address (machine-id(5))."""
    member = root.members.get("etc/machine-id")
    if member is None or member.kind != "file" or member.size > 64:
        return
    if root.tree.read("etc/machine-id", 64).strip() not in (b"", b"uninitialized"):
        events.warning(
            f"{image} has a filled /etc/machine-id, so all its VMs share it: "
            "empty it in the Containerfile"
        )


def _make_growable(root: _Root, root_uuid: str) -> None:
    """Have systemd grow the root partition and its file system; other inits do it themselves.

    The partition: systemd-repart, which takes an existing partition for the one that is
    described (repart.d(5)). The file system: x-systemd.growfs in fstab (systemd.mount(5)).
    """
    members = root.members
    if not any(name in members for name in ("usr/lib/systemd/systemd", "lib/systemd/systemd")):
        return
    repart = [name for name in members if "/repart.d/" in name and name.endswith(".conf")]
    if not repart and _can_add(members, "usr/lib/repart.d/50-root.conf"):
        text = b"[Partition]\nType=root\n"
        root.tree.add("usr/lib/repart.d/50-root.conf", text, root.epoch)
    before = members.get("etc/fstab")
    if not _can_add(members, "etc/fstab", replace="file"):
        return
    if before is not None and before.size > _MAX_FSTAB:
        return
    old = root.tree.read("etc/fstab", _MAX_FSTAB) if before is not None else b""
    fields = [line.split() for line in old.splitlines() if not line.lstrip().startswith(b"#")]
    if any(len(row) > 1 and row[1] == b"/" for row in fields):
        return
    new = f"UUID={root_uuid} / ext4 defaults,x-systemd.growfs 0 1\n".encode()
    separator = b"" if not old or old.endswith(b"\n") else b"\n"
    root.tree.add("etc/fstab", old + separator + new, root.epoch, like=before)


def _order_networkd(root: _Root) -> None:
    """Have systemd-networkd start when the files with its static addresses are there.

    Below version 256 they come from systemd-tmpfiles (see `credentials`), and nothing in those
    versions orders the two. systemd-networkd is not part of sysinit.target, so it may come later.
    """
    unit = "usr/lib/systemd/system/systemd-networkd.service"
    name = f"{unit}.d/50-poclab.conf"
    if unit in root.members and _can_add(root.members, name):
        root.tree.add(name, b"[Unit]\nAfter=systemd-tmpfiles-setup.service\n", root.epoch)


def _can_add(members: rootfs.Members, name: str, replace: str = "") -> bool:
    """Whether a file can be added: every parent is a directory or missing, and nothing is there.

    Args:
        members: the image's files.
        name: the file's path.
        replace: a kind of file that may be there.
    """
    parts = name.split("/")
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
    if name in members and members[name].kind != replace:
        return False
    return all(parent not in members or members[parent].kind == "directory" for parent in above)


def _raw_disk(root: _Root, bootable: Bootable, arch: esp.Arch, request: BuildRequest) -> Path:
    work = request.workdir
    scratch = work / "esp"
    scratch.mkdir()
    options = _command_line(request, bootable, arch)
    sources = _boot_files(root, bootable, arch)
    files = esp.loader_files(sources, options, scratch, root.epoch)
    layout = _layout(request, esp.esp_size(list(files.values())), root)
    raw = work / "disk.raw"
    events.step("partition the disk", size=layout.disk_size)
    ids = {f"{part}_id": _id(request, f"{part} partition") for part in ("disk", "esp", "root")}
    esp.write_gpt(raw, layout, arch, **ids)
    serial = _id(request, "esp")[:8]
    esp.write_esp(raw, layout, files, serial=serial, epoch=root.epoch)
    _write_root(raw, layout, root, request)
    return raw


def _boot_files(root: _Root, bootable: Bootable, arch: esp.Arch) -> dict[str, esp.Source]:
    """Where the files of the FAT partition come from, by path in it."""
    tree = root.tree
    vmlinuz, initramfs = bootable.kernel.vmlinuz, bootable.kernel.initramfs
    # The kernel's EFI stub makes it a PE file; systemd-boot starts nothing else.
    if tree.read(tree.resolved(vmlinuz), 2) != b"MZ":
        raise PoclabError(
            f"/{vmlinuz} cannot be started by UEFI",
            why="it has no EFI stub (CONFIG_EFI_STUB)",
            fix="use a distribution's kernel in the Containerfile",
        )
    name = f"{esp.LOADER_DIR}/{arch.loader}"
    own = tree.members.get(name)
    host = esp.host_loader(arch)
    if own is not None and own.kind == "file":
        loader: esp.Source = partial(tree.copy, name)
    elif host is not None:
        loader = partial(shutil.copyfile, host)
    else:
        raise esp.loader_missing(arch)
    return {
        f"EFI/BOOT/{arch.removable}": loader,
        "vmlinuz": partial(tree.copy, vmlinuz),
        "initrd.img": partial(tree.copy, initramfs),
    }


def _write_root(raw: Path, layout: esp.Layout, root: _Root, request: BuildRequest) -> None:
    work, place = request.workdir, layout.root_start
    content = rootfs.content_size(root.members)
    free_space.check(work, "the image's files", needed=content, place=work.parent)
    events.step("make the root file system", size=layout.root_size, files=len(root.members))
    rootfs.make_ext4(
        work,
        raw.name,
        offset=place,
        size=layout.root_size,
        uuid=_id(request, "root"),
        files=len(root.members),
        epoch=root.epoch,
    )
    events.step("write the image's files", files=len(root.members))
    rootfs.fill(work, raw.name, root.tree, offset=place, size=layout.root_size, epoch=root.epoch)
    events.step("check the root file system")
    rootfs.check_ext4(work, raw.name, place, root.epoch)


def _layout(request: BuildRequest, esp_bytes: int, root: _Root) -> esp.Layout:
    """Where the partitions go: the root takes what the others leave.

    Without a size asked for, the root is twice the content, and 512 MiB larger than it.
    """
    content = rootfs.content_size(root.members)
    wanted = -(-max(2 * content, content + 512 * MIB) // MIB) * MIB
    smallest = esp.Layout(esp_bytes, 0).disk_size
    if request.disk_size is None:
        return esp.Layout(esp_bytes, wanted)
    size = (request.disk_size - smallest) // MIB * MIB
    # ext4's own share: inode tables 1.6 %, a journal of 4 MiB at least, reserved blocks 1 %.
    if size < content + content // 32 + 8 * MIB:
        raise rootfs.too_small(max(size, 0), smallest + wanted)
    return esp.Layout(esp_bytes, size)


def _command_line(request: BuildRequest, bootable: Bootable, arch: esp.Arch) -> str:
    words = [f"root=UUID={_id(request, 'root')}", "rw"]
    if not any(arg.startswith("console=") for arg in request.kernel_args):
        # The last one is /dev/console: where an init and emergency shells talk.
        words += ["console=tty0", f"console={arch.console}"]
    if bootable.init:
        words.append(f"init={bootable.init}")
    return " ".join([*words, *request.kernel_args])


def _id(request: BuildRequest, purpose: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{request.image_id} {purpose}"))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
