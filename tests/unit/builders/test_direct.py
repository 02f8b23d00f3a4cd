"""The parts of the direct builder: kernels, file trees, partitions, the file system."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from poclab.builders import direct, esp, ext2fs, rootfs
from poclab.builders.base import BuildRequest
from poclab.builders.direct import Direct
from poclab.builders.kernel import Bootable, Kernel, find_bootable, find_kernel
from poclab.core import tar_reader
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import Runner, using
from poclab.core.units import MIB
from poclab.disks.digest import file_digest
from tests.hostile import layers
from tests.support import oddtree

# --- kernels ----------------------------------------------------------------------------

BOOTC = ["usr/lib/modules/6.12/vmlinuz", "usr/lib/modules/6.12/initramfs.img"]
DEBIAN = ["boot/vmlinuz-6.1.0-2-amd64", "boot/initrd.img-6.1.0-2-amd64"]


@pytest.mark.parametrize(
    ("names", "kernel"),
    [
        (BOOTC, Kernel("6.12", *BOOTC)),
        ([f"/{name}" for name in BOOTC], Kernel("6.12", *BOOTC)),
        ([f"./{name}" for name in DEBIAN], Kernel("6.1.0-2-amd64", *DEBIAN)),
        (["boot/vmlinuz-virt", "boot/initramfs-virt"],
         Kernel("virt", "boot/vmlinuz-virt", "boot/initramfs-virt")),
        (["usr/lib/modules/6.12/vmlinuz", "boot/initramfs-6.12.img"],
         Kernel("6.12", "usr/lib/modules/6.12/vmlinuz", "boot/initramfs-6.12.img")),
        ([*BOOTC, "boot/vmlinuz-6.12", "boot/initramfs-6.12.img"], Kernel("6.12", *BOOTC)),
        (["boot/vmlinuz", "boot/initrd.img"], Kernel("", "boot/vmlinuz", "boot/initrd.img")),
        (["usr/lib/modules/6.12-arch1/vmlinuz", "boot/vmlinuz-linux", "boot/initramfs-linux.img"],
         Kernel("linux", "boot/vmlinuz-linux", "boot/initramfs-linux.img")),
        (["vmlinuz", "boot/vmlinuz", *DEBIAN], Kernel("6.1.0-2-amd64", *DEBIAN)),
    ],
)  # fmt: skip
def test_find_kernel(names: list[str], kernel: Kernel) -> None:
    assert find_kernel(["etc/passwd", "usr/share/doc/vmlinuz-6", *names]) == kernel


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["etc/passwd"], "has no kernel"),
        (["usr/lib/modules/6.12/initramfs.img"], "has no kernel"),
        (BOOTC[:1], "no initramfs for its kernel 6.12"),
        ([*DEBIAN[:1], "boot/initrd.img-5.10"], "no initramfs for its kernel 6.1.0-2-amd64"),
        (["boot/vmlinuz"], "no initramfs for its kernel\n"),
        ([*BOOTC, *DEBIAN], "has 2 kernels: 6.1.0-2-amd64, 6.12"),
    ],
)
def test_no_kernel_to_boot(names: list[str], message: str) -> None:
    with pytest.raises(PoclabError) as error:
        find_kernel(names)
    assert message in str(error.value)
    assert error.value.fix


def test_bootc_looks_beside_the_modules_alone() -> None:
    assert find_kernel([*BOOTC, *DEBIAN], bootc=True) == Kernel("6.12", *BOOTC)
    with pytest.raises(PoclabError, match="no kernel"):
        find_kernel(DEBIAN, bootc=True)
    with pytest.raises(PoclabError, match=r"no /usr/lib/modules/6.12/initramfs.img"):
        find_kernel([BOOTC[0], "boot/initramfs-6.12.img"], bootc=True)
    with pytest.raises(PoclabError, match=r"has 2 kernels: 5\.14, 6\.12"):
        find_kernel([*BOOTC, "usr/lib/modules/5.14/vmlinuz"], bootc=True)


def test_find_init() -> None:
    kernel = Kernel("6.12", *BOOTC)
    assert find_bootable([*BOOTC, "sbin/init"], []) == Bootable(kernel, "")
    assert find_bootable(BOOTC, ["usr/sbin/init"]) == Bootable(kernel, "")
    systemd = "usr/lib/systemd/systemd"
    assert find_bootable([*BOOTC, systemd], []) == Bootable(kernel, f"/{systemd}")
    assert find_bootable(BOOTC, [], ["quiet", "init=/x"]) == Bootable(kernel, "")
    with pytest.raises(PoclabError, match="has no init"):
        find_bootable(BOOTC, ["sbin"])


@pytest.mark.parametrize("version", ["6.1\nx", "-rf", "6.1 init=/x", "\x1b[2J", "x" * 65])
def test_a_version_that_no_kernel_has_is_not_a_kernel(version: str) -> None:
    names = [f"boot/vmlinuz-{version}", f"boot/initrd.img-{version}"]
    assert find_kernel([*DEBIAN, *names]) == Kernel("6.1.0-2-amd64", *DEBIAN)
    with pytest.raises(PoclabError, match="has no kernel"):
        find_kernel(names)


# --- file trees -------------------------------------------------------------------------


def tar_of(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar file of (name, type, link target)."""
    with tarfile.open(path, "w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member, io.BytesIO())
    return path


F, D, S, H = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../x", F, "")], "contains .."),
        ([("a/../../x", F, "")], "contains .."),
        ([("/etc/x", F, "")], "begins with /"),
        ([("a", S, "/etc"), ("a/passwd", F, "")], "not a directory"),
        ([("a/passwd", F, ""), ("a", S, "/etc")], "not a directory"),
        ([("a", F, ""), ("a/b", F, "")], "not a directory"),
        ([("a", F, ""), ("./a", F, "")], "duplicate name"),
        ([("a", D, ""), ("a", S, "/etc")], "duplicate name"),
        ([("a", H, "/etc/shadow")], "begins with /"),
        ([("a", H, "../etc/shadow")], "contains .."),
        ([("a", H, "none")], "hard link"),
        ([("d", D, ""), ("a", H, "d")], "hard link"),
        ([("a", b"V", "")], "unknown file type"),
        ([("lost+found", F, "")], "every ext4 has"),
        ([("a", S, "")], "target is empty"),
    ],
)
def test_refuses_hostile_trees(
    members: list[tuple[str, bytes, str]], why: str, tmp_path: Path
) -> None:
    with pytest.raises(PoclabError, match=re.escape(why)):
        rootfs.listing(tar_of(tmp_path / "t.tar", *members))
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]


def test_more_links_than_ext4_counts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "_LINK_MAX", 4)
    names = [(f"n{number}", H, "a") for number in range(3)]
    assert len(rootfs.listing(tar_of(tmp_path / "t.tar", ("a", F, ""), *names))) == 4
    with pytest.raises(PoclabError, match="more than 4 links"):
        rootfs.listing(tar_of(tmp_path / "u.tar", ("a", F, ""), *names, ("b", H, "a")))
    directories = [(f"d/{number}", D, "") for number in range(3)]
    with pytest.raises(PoclabError, match="more than 4 links"):
        rootfs.listing(tar_of(tmp_path / "v.tar", *directories))


def test_more_files_than_memory_holds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "t.tar", *((f"n{number}", F, "") for number in range(5)))
    monkeypatch.setattr(tar_reader, "MAX_MEMBERS", 4)
    with pytest.raises(PoclabError, match="more than 4 files"):
        rootfs.listing(tar)
    monkeypatch.undo()
    monkeypatch.setattr(tar_reader, "MAX_TEXT", 9)
    with pytest.raises(PoclabError, match="too long names"):
        rootfs.listing(tar)


@pytest.mark.parametrize(
    ("maker", "limit", "most", "why"),
    [
        (layers.deep_paths, "MAX_MEMBERS", 20_000, "more than 20,000 files"),
        (layers.deep_paths, "MAX_TEXT", 5 * MIB, "too long names"),
        (layers.short_attributes, "MAX_TEXT", 500_000, "too long names and attributes"),
    ],
)
def test_what_an_archive_only_implies_counts_as_well(
    maker: layers.Maker,
    limit: str,
    most: int,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Directories that are only parts of paths, and the memory of attributes without text."""
    tar = layers.write(tmp_path / "t.tar", maker)
    assert rootfs.listing(tar)
    monkeypatch.setattr(tar_reader, limit, most)
    with pytest.raises(PoclabError, match=why):
        rootfs.listing(tar)


def test_a_missing_parent_is_made_and_mount_points_are_added(tmp_path: Path) -> None:
    members = rootfs.listing(tar_of(tmp_path / "t.tar", ("a/b/c", F, ""), ("run", S, "x")))
    rootfs.complete(members, 7)
    for name in ("a", "a/b", ""):
        assert members[name].kind == "directory"
    assert members["run"].kind == "symlink"
    assert members["tmp"].mode == 0o1777


def test_a_cut_tar_file_is_an_error(tmp_path: Path) -> None:
    tar = oddtree.write(tmp_path / "t.tar", extra=50)
    for size in range(tar.stat().st_size // 2, 0, -7936):
        os.truncate(tar, size)
        with pytest.raises(PoclabError, match="cannot be read"):
            rootfs.listing(tar)


def ext4(work: Path, tar: Path, size: int = 32 * MIB) -> Path:
    """An ext4 of a tar file in a file of its own, at an offset."""
    work.mkdir()
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    rootfs.complete(tree.members, oddtree.MTIME)
    (work / "disk").touch()
    os.truncate(work / "disk", MIB + size)
    uuid = "11111111-2222-3333-4444-555555555555"
    rootfs.make_ext4(
        work, "disk", offset=MIB, size=size, uuid=uuid, files=len(tree.members),
        epoch=oddtree.MTIME,
    )  # fmt: skip
    rootfs.fill(work, "disk", tree, offset=MIB, size=size, epoch=oddtree.MTIME)
    return work / "disk"


def in_child_as_nobody(action: Callable[[], object]) -> None:
    """Run something as a user without privileges: nobody if this is root, else this user."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            action()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_the_file_system_is_the_same_for_every_user_and_every_time(tmp_path: Path) -> None:
    tar = oddtree.write(tmp_path / "t.tar", extra=200)
    first = file_digest(ext4(tmp_path / "a", tar))
    # Not below tmp_path, which is closed to others.
    with tempfile.TemporaryDirectory() as name:
        common = Path(name)
        common.chmod(0o777)
        shutil.copyfile(tar, common / "t.tar")
        (common / "t.tar").chmod(0o644)
        in_child_as_nobody(lambda: ext4(common / "b", common / "t.tar"))
        assert file_digest(common / "b/disk") == first
    assert file_digest(ext4(tmp_path / "c", tar)) == first


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    tar = oddtree.write(tmp_path / "t.tar", extra=6000)
    with pytest.raises(PoclabError, match="do not fit"):
        ext4(tmp_path / "a", tar, 8 * MIB)


def test_a_damaged_file_system_is_found(tmp_path: Path) -> None:
    made = ext4(tmp_path / "a", oddtree.write(tmp_path / "t.tar"))
    rootfs.check_ext4(made.parent, made.name, MIB, oddtree.MTIME)
    run("debugfs", "-w", "-R", "sif /etc links_count 9", f"{made}?offset={MIB}")
    with pytest.raises(PoclabError, match="damaged"):
        rootfs.check_ext4(made.parent, made.name, MIB, oddtree.MTIME)


# --- partitions and loader --------------------------------------------------------------

IDS = {
    "disk_id": "00000001-0000-4000-8000-000000000000",
    "esp_id": "00000002-0000-4000-8000-000000000000",
    "root_id": "00000003-0000-4000-8000-000000000000",
}


def test_partition_table_and_loader(tmp_path: Path) -> None:
    arch = esp.host_arch()
    layout = esp.Layout(64 * MIB, 100 * MIB)
    made = tmp_path / "disk.raw"
    esp.write_gpt(made, layout, arch, **IDS)
    assert made.stat().st_size == layout.disk_size == 166 * MIB
    assert b"No errors" in run("sfdisk", "--verify", made)
    table = run("sfdisk", "--dump", made).decode()
    assert re.search(
        r"start= *2048, size= *131072, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B", table
    )
    assert re.search(rf"start= *133120, size= *204800, type={arch.root_type}", table)
    for name in ("kernel", "initrd", "loader"):
        (tmp_path / name).write_bytes(name.encode() * 999)
    (tmp_path / "scratch").mkdir()
    names = {f"EFI/BOOT/{arch.removable}": "loader", "vmlinuz": "kernel", "initrd.img": "initrd"}
    sources = {name: partial(shutil.copyfile, tmp_path / file) for name, file in names.items()}
    files = esp.loader_files(sources, "root=UUID=x rw quiet", tmp_path / "scratch", oddtree.MTIME)
    esp.write_esp(made, layout, files, serial="12345678", epoch=oddtree.MTIME)
    image = f"{made}@@1M"
    assert run("mtype", "-i", image, f"::/EFI/BOOT/{arch.removable}") == b"loader" * 999
    assert run("mtype", "-i", image, "::/vmlinuz") == b"kernel" * 999
    assert run("mtype", "-i", image, "::/initrd.img") == b"initrd" * 999
    entry = run("mtype", "-i", image, "::/loader/entries/poclab.conf").decode()
    assert entry.splitlines()[1:] == [
        "linux /vmlinuz", "initrd /initrd.img", "options root=UUID=x rw quiet",
    ]  # fmt: skip
    assert b"timeout 0" in run("mtype", "-i", image, "::/loader/loader.conf")
    with made.open("rb") as source, (tmp_path / "fat").open("wb") as target:
        source.seek(MIB)
        target.write(source.read(layout.esp_size))
    assert b"FAT32" in run("minfo", "-i", tmp_path / "fat", "::")
    run("fsck.fat", "-n", tmp_path / "fat")


def run(*argv: str | Path) -> bytes:
    env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", TZ="UTC")
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_esp_grows_with_its_files(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.touch()
    assert esp.esp_size([big]) == 64 * MIB
    os.truncate(big, 100 * MIB)
    assert 110 * MIB <= esp.esp_size([big]) <= 120 * MIB
    assert esp.esp_size([big]) % MIB == 0


# --- what the builder refuses -----------------------------------------------------------


def request(tmp_path: Path, **more: object) -> BuildRequest:
    return BuildRequest("x", "0" * 64, tmp_path, tmp_path / "log", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more",
    [
        {"rootfs": "xfs"},
        {"rootfs": "../x"},
        {"blueprint": Path("config.toml")},
        {"builder_image": "x"},
        {"builder_args": ("--in-vm",)},
        {"kernel_args": ("a\ninitrd /x",)},
    ],
)
def test_requests_it_cannot_serve(more: dict[str, object], tmp_path: Path) -> None:
    class Untouched(Runner):
        def run(self, *args: object, **options: object) -> None:  # type: ignore[override]
            raise AssertionError("a process was started")

    with using(Untouched()), pytest.raises(UsageError):
        Direct().check(request(tmp_path, **more))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    class Without(Runner):
        def which(self, program: str) -> str | None:
            return None if program == "mcopy" else "/usr/bin/" + program

    with using(Without()), pytest.raises(PoclabError, match="mcopy is not installed") as error:
        Direct().check(request(tmp_path))
    assert "mtools" in error.value.fix


def test_a_missing_library_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext2fs, "LIBRARY", "libext2fs.so.99")
    with pytest.raises(PoclabError, match=r"libext2fs\.so\.99 cannot be loaded") as error:
        Direct().check(request(tmp_path))
    assert "e2fsprogs" in error.value.fix


def test_unknown_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(PoclabError, match="no disks for vax"):
        Direct().check(request(tmp_path))


def test_no_room_for_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from poclab.containers.podman import ImageInfo

    monkeypatch.setattr(
        "poclab.containers.podman.inspect", lambda name: ImageInfo("0" * 64, name, size=10**18)
    )
    with pytest.raises(PoclabError, match="no room for the build"):
        direct._check_space(request(tmp_path))
