"""The direct builder from a container image in podman's storage to a disk, with real tools."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poclab.builders import inspect, rootfs
from poclab.builders.base import BuildRequest
from poclab.builders.direct import Direct
from poclab.containers import podman as product
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.units import MIB
from poclab.disks.digest import file_digest
from poclab.disks.inspection import inspect_file
from poclab.disks.qcow2_header import virtual_size
from tests.hostile import layers
from tests.support import oddtree, podman
from tests.support.ext4 import Ext4, expected


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _imported(tmp_path_factory.mktemp("image"), "odd", systemd=True, extra=300)


@pytest.fixture(scope="module")
def no_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from _imported(tmp_path_factory.mktemp("image"), "nokernel", kernel=False)


def _imported(directory: Path, name: str, **options: object) -> Iterator[str]:
    tar = oddtree.write(directory / "t.tar", **options)  # type: ignore[arg-type]
    full = f"localhost/poclab-test/direct-{name}-{os.getpid()}"
    with podman.working():
        yield podman.run("import", "--quiet", str(tar), full).strip().removeprefix("sha256:")
        podman.run("rmi", "--force", full)


def request(image: str, workdir: Path, **more: object) -> BuildRequest:
    workdir.mkdir()
    made = BuildRequest("odd", image, workdir, workdir / "log", disk_size=256 * MIB)
    return replace(made, **more)  # type: ignore[arg-type]


def run(*argv: str | Path) -> str:
    env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", TZ="UTC")
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.decode(errors="surrogateescape")


class Root:
    """Looks into the root file system of a disk, without mounting it."""

    def __init__(self, raw: Path) -> None:
        table = run("sfdisk", "--dump", raw)
        start = re.search(r"raw2 : start= *([0-9]+), size= *([0-9]+)", table)
        assert start is not None, table
        self.size = int(start[2]) * 512
        self.device = f"{raw}?offset={int(start[1]) * 512}"
        self.table = table

    def ask(self, command: str) -> str:
        return run("debugfs", "-R", command, self.device)

    def stat(self, name: str) -> dict[str, str]:
        quoted = name.replace('"', '""')
        text = self.ask(f'stat "{quoted}"')
        pairs = re.findall(r"(\w+): +([^\s]+)", text)
        return dict(reversed(pairs)) | {"text": text}


@pytest.fixture(scope="module")
def built(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("build") / "w"
    made = Direct().build(request(image, workdir, kernel_args=("quiet", "a=b")))
    assert made.inputs["kernel"] == oddtree.KVER
    assert made.disk == workdir / "disk.qcow2"
    raw = workdir.parent / "check.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", made.disk, raw)
    return raw


@pytest.fixture(scope="module")
def root(built: Path) -> Root:
    return Root(built)


def test_disk_is_whole(built: Path, root: Root) -> None:
    assert "No errors" in run("sfdisk", "--verify", built)
    assert built.stat().st_size <= 256 * MIB
    assert 256 * MIB - built.stat().st_size < MIB
    # The root partition is the last one and leaves no room for another.
    assert root.size == 256 * MIB - 66 * MIB
    text = run("e2fsck", "-f", "-n", root.device)
    assert "Fix" not in text
    blocks = re.search(r"/([0-9]+) blocks", text)
    assert blocks is not None
    assert int(blocks[1]) * 4096 == root.size


def test_disk_passes_the_inspection(built: Path) -> None:
    assert inspect_file(built.parent / "w/disk.qcow2").format == "qcow2"


def test_loader(built: Path) -> None:
    image = f"{built}@@1M"
    entry = run("mtype", "-i", image, "::/loader/entries/poclab.conf")
    uuid = re.search(r"UUID=(\S+) rw console=tty0 console=ttyS0 quiet a=b\n", entry)
    assert uuid is not None
    assert uuid[1] in run("dumpe2fs", "-h", Root(built).device)
    assert run("mtype", "-i", image, "::/EFI/BOOT/BOOTX64.EFI") == "MZ systemd-boot of the image"
    assert run("mtype", "-i", image, "::/vmlinuz").startswith("MZkernel")
    assert run("mtype", "-i", image, "::/initrd.img").startswith("initrd")


@pytest.mark.parametrize(
    ("name", "mode", "user", "group", "links"),
    [
        ("/", "0755", "0", "0", None),
        ("/usr/bin/sudo", "04755", "0", "0", "1"),
        ("/usr/bin/wall", "02755", "0", "5", "1"),
        ("/etc/shadow", "0000", "0", "42", "2"),
        ("/etc/gshadow", "0000", "0", "42", "2"),
        ("/home/u", "0755", "60000", "60000", None),
        ("/home/u/file", "0600", "60000", "60000", "1"),
        ("/home/u/dangling", "0777", "60000", "60000", "1"),
        ("/odd/tmp", "01777", "0", "0", None),
        ("/odd/fifo", "0622", "0", "0", "1"),
        ("/tmp", "01777", "0", "0", None),
        ("/proc", "0555", "0", "0", None),
        ("/etc/fstab", "0644", "0", "0", "1"),
        *((f"/odd/{name}", "0644", "7", "0", "1") for name in oddtree.ODD_NAMES),
    ],
)
def test_files(name: str, mode: str, user: str, group: str, links: str | None, root: Root) -> None:
    found = root.stat(name)
    assert found.get("User") == user, found["text"]
    assert (found["Mode"], found["Group"]) == (mode, group)
    if links is not None:
        assert found["Links"] == links


def test_contents(root: Root, tmp_path: Path) -> None:
    for name in oddtree.ODD_NAMES:
        quoted = name.replace('"', '""')
        assert root.ask(f'cat "/odd/{quoted}"') == name
    assert root.stat("/etc/shadow")["Inode"] == root.stat("/etc/gshadow")["Inode"]
    assert 'Fast link dest: "/nowhere/else"' in root.stat("/home/u/dangling")["text"]
    root.ask(f"ea_get -f {tmp_path}/capability /usr/bin/ping security.capability")
    assert (tmp_path / "capability").read_bytes() == oddtree.CAPABILITY
    assert "Type: FIFO" in root.stat("/odd/fifo")["text"]
    for name in ("/odd/fifo", "/odd/tmp", "/home/u/dangling", "/etc/shadow"):
        times = re.findall(r"\b[acm]time: 0x([0-9a-f]+)", root.stat(name)["text"])
        assert [int(time, 16) for time in times] == [oddtree.MTIME] * 3


def test_grows_with_the_disk(root: Root) -> None:
    assert root.ask("cat /usr/lib/repart.d/50-root.conf") == "[Partition]\nType=root\n"
    fields = root.ask("cat /etc/fstab").split()
    assert fields[1:4] == ["/", "ext4", "defaults,x-systemd.growfs"]
    assert "resize_inode" in run("dumpe2fs", "-h", root.device)


def test_networkd_starts_when_its_addresses_are_there(root: Root) -> None:
    name = "/usr/lib/systemd/system/systemd-networkd.service.d/50-poclab.conf"
    assert root.ask(f"cat {name}") == "[Unit]\nAfter=systemd-tmpfiles-setup.service\n"


@pytest.mark.parametrize(
    "maker", [layers.commands_in_attribute_names, layers.links_where_poclab_adds]
)
def test_a_hostile_layer_that_podman_takes(maker: layers.Maker, tmp_path: Path) -> None:
    """The whole way: into podman's storage, out of it, and onto a disk."""
    victim = tmp_path / "VICTIM"
    victim.write_text("the user's own")
    tar = layers.write(tmp_path / "t.tar", maker)
    full = f"localhost/poclab-test/hostile-{os.getpid()}"
    work = tmp_path / "a/b/c/d/w"
    work.parent.mkdir(parents=True)
    with podman.working():
        found = podman.run("import", "--quiet", str(tar), full).strip().removeprefix("sha256:")
        try:
            made = Direct().build(request(found, work)).disk
        finally:
            podman.run("rmi", "--force", full)
    assert victim.read_text() == "the user's own"
    assert not Path("/VICTIM").exists()
    assert sorted(path.name for path in tmp_path.rglob("INJECTED")) == []
    assert not Path("/INJECTED").exists()
    raw = tmp_path / "check.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", made, raw)
    wanted = expected(tar)
    tree = Ext4(raw, 65 * MIB).tree()
    for name in (b"etc/payload", b"etc/fstab"):
        if name in wanted:
            assert tree[name].xattrs == wanted[name].xattrs
            assert tree[name].kind == wanted[name].kind


DUMP = """
import json, os, sys
found = {}
for where, directories, files in os.walk(b"."):
    for name in (b".", *directories, *files):
        path = os.path.normpath(os.path.join(where, name))
        if path in found or path.split(b"/")[0] == b"lost+found":
            continue
        stat = os.lstat(path)
        found[path.hex()] = [
            stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_nlink, stat.st_ino,
            os.major(stat.st_rdev), os.minor(stat.st_rdev),
            {os.fsencode(key).hex(): os.getxattr(path, key, follow_symlinks=False).hex()
             for key in os.listxattr(path, follow_symlinks=False)},
            os.readlink(path).hex() if os.path.islink(path) else "",
        ]
json.dump(found, sys.stdout)
"""


def test_the_kernel_reads_what_was_written(tmp_path: Path) -> None:
    makers = (
        *(layers.attributes, layers.owners, layers.times, layers.hard_links, layers.devices),
        *(layers.not_utf8, layers.commands_in_names, layers.commands_in_targets),
    )

    def everything(tar: layers.Archive) -> None:
        for maker in makers:
            maker(tar)

    tar = layers.write(tmp_path / "image.tar", everything)
    tree = rootfs.Tree(tar, rootfs.listing(tar))
    size, uuid = 32 * MIB, "11111111-2222-3333-4444-555555555555"
    with (tmp_path / "disk").open("xb") as file:
        file.truncate(size)
    rootfs.make_ext4(tmp_path, "disk", offset=0, size=size, uuid=uuid, files=200, epoch=1)
    rootfs.fill(tmp_path, "disk", tree, offset=0, size=size, epoch=1)
    (tmp_path / "mnt").mkdir()
    script = 'mount -o loop,ro,noload "$1" "$2" && cd "$2" && exec python3 -c "$3"'
    enter = (*product.sudo_prefix(), "unshare", "-m", "sh", "-c", script, "sh")
    found = json.loads(run(*enter, tmp_path / "disk", tmp_path / "mnt", DUMP))
    numbers: dict[int, tuple[int, int]] = {}
    for path, node in expected(tar).items():
        mode, uid, gid, mtime, links, number, major, minor, xattrs, target = found[path.hex()]
        assert (mode & 0o7777, uid, gid, mtime) == (node.mode, node.uid, node.gid, node.times[2])
        assert (major, minor) == node.device
        assert {bytes.fromhex(k): bytes.fromhex(v) for k, v in xattrs.items()} == node.xattrs
        if node.kind == "symlink":
            assert bytes.fromhex(target) == node.content
        if node.kind != "directory":
            assert numbers.setdefault(id(node), (number, links)) == (number, links)


def test_peeking_makes_no_file_of_the_image(tmp_path: Path) -> None:
    def maker(tar: layers.Archive) -> None:
        tar.add("usr/lib/os-release", layers.S, linkname="../../etc/release")
        tar.add("etc/release", data=b"ID=debian\n" + b"#" * 1_000_000)
        tar.add("etc/os-release", layers.S, linkname=str(tmp_path / "secret"))
        tar.add("usr/bin/bootc", layers.D)

    (tmp_path / "secret").write_text("ID=secret\n")
    tar = layers.write(tmp_path / "t.tar", maker)
    full = f"localhost/poclab-test/peek-{os.getpid()}"
    with podman.working():
        found = podman.run("import", "--quiet", str(tar), full).strip().removeprefix("sha256:")
        try:
            inside = inspect.peek(found)
        finally:
            podman.run("rmi", "--force", full)
    assert "secret" not in inside.os_release
    assert len(inside.os_release) <= 65536
    assert inside.debian_family == inside.os_release.startswith("ID=debian")
    assert not inside.bootc


def test_same_input_same_bytes(image: str, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        digests.add(file_digest(Direct().build(request(image, tmp_path / name)).disk))
    assert len(digests) == 1


def test_default_size_holds_twice_the_content_and_512_mib_more(image: str, tmp_path: Path) -> None:
    made = Direct().build(request(image, tmp_path / "w", disk_size=None))
    assert virtual_size(made.disk) > (512 + 66) * MIB


def test_too_small_a_disk_names_the_size_needed(image: str, tmp_path: Path) -> None:
    with pytest.raises(PoclabError, match="do not fit") as error:
        Direct().build(request(image, tmp_path / "w", disk_size=67 * MIB))
    assert re.search(r"at least [0-9]+ MiB", error.value.fix)


def test_an_image_that_cannot_boot_is_refused_before_its_disk_is_made(
    no_kernel: str, tmp_path: Path
) -> None:
    seen: list[str] = []
    with (
        events.listening(lambda event: seen.append(event.text)),
        pytest.raises(PoclabError, match="has no kernel"),
    ):
        Direct().build(request(no_kernel, tmp_path / "w"))
    assert "partition the disk" not in seen
    assert not (tmp_path / "w/disk.raw").exists()


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        PoclabError("mke2fs failed", why="mke2fs: No space left on device while writing"),
    ],
)
def test_a_full_disk(failure: Exception, image: str, tmp_path: Path) -> None:
    def fail(event: events.Event) -> None:
        if event.text == "make the root file system":
            raise failure

    with events.listening(fail), pytest.raises(PoclabError, match="cannot write in") as error:
        Direct().build(request(image, tmp_path / "w"))
    assert "No space left on device" in error.value.why
    assert "make room" in error.value.fix


def test_a_shared_machine_id_is_warned_of(tmp_path: Path) -> None:
    warnings: list[str] = []
    for number, text in enumerate(("", "uninitialized\n", "0123456789abcdef" * 2 + "\n")):
        (tmp_path / str(number)).mkdir()
        for made in _imported(tmp_path / str(number), f"id{number}", machine_id=text):
            with events.listening(
                lambda event: warnings.append(event.text) if event.kind == "warning" else None
            ):
                Direct().build(request(made, tmp_path / str(number) / "w"))
    (warning,) = warnings
    assert "/etc/machine-id" in warning


def test_a_real_image_is_built_looked_at_and_exported(tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("hello")
    (tmp_path / "Containerfile").write_text(
        "FROM scratch\nARG VERSION\nCOPY hello /hello-${VERSION}\nLABEL version=${VERSION}\n"
    )
    name = f"localhost/poclab-test/build-{os.getpid()}:v1"
    lines: list[str] = []
    log = tmp_path / "log"
    with podman.working():
        found = product.build(
            tmp_path, tmp_path / "Containerfile", name, {"VERSION": "7 b"}, lines.append, log
        )
        try:
            assert product.inspect(name).id == found.id
            assert found.labels["version"] == "7 b"
            product.export(found.id, tmp_path / "t.tar")
            assert list(rootfs.listing(tmp_path / "t.tar")) == ["hello-7 b"]
            assert any(line.startswith("STEP") for line in lines)
            assert log.read_text().splitlines() == lines
        finally:
            podman.run("rmi", "--force", name)
        assert not product.exists(name)
        (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY none /\n")
        with pytest.raises(PoclabError, match="podman build") as error:
            product.build(tmp_path, tmp_path / "Containerfile", name, {}, lines.append, log)
    assert error.value.why.startswith("Error: ")


def test_interrupted_at_any_step_no_container_stays(image: str, tmp_path: Path) -> None:
    steps: list[str] = []
    with events.listening(lambda e: steps.append(e.text) if e.kind == "step" else None):
        Direct().build(request(image, tmp_path / "all"))
    assert len(steps) >= 6
    before = set(podman.run("ps", "--all", "--format", "{{.Names}}").split())
    for number, wanted in enumerate(steps):

        def interrupt(event: events.Event, wanted: str = wanted) -> None:
            if event.kind == "step" and event.text == wanted:
                raise KeyboardInterrupt

        with events.listening(interrupt), pytest.raises(KeyboardInterrupt):
            Direct().build(request(image, tmp_path / str(number)))
    after = set(podman.run("ps", "--all", "--format", "{{.Names}}").split())
    assert {name for name in after - before if f"-{os.getpid()}-" in name} == set()


def test_a_container_of_a_killed_process_is_found_and_removed(image: str) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        name = product.container_name("export")
        argv = ["podman", "create", "--network=none", "--name", name, image, "x"]
        subprocess.run(argv, check=False, stdout=subprocess.DEVNULL)
        os.write(writer, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    name = os.read(reader, 200).decode()
    os.close(reader)
    os.close(writer)
    assert name in product.leftovers()
    assert name in product.remove_leftovers()
    assert name not in podman.run("ps", "--all", "--format", "{{.Names}}").split()
