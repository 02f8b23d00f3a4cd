"""What domains stand on, by their XML and by the headers of the files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from poclab.disks.qcow2_header import backing_file
from poclab.virt.disk_users import Usage, named_files, sources

DOMAIN = """
<domain><os><nvram>/pool/nvram</nvram></os><devices>
  <disk type='file' device='disk'>
    <source file='/pool/top'/>
    <backingStore type='file'>
      <source file='/pool/below'/>
      <backingStore type='file'><source file='/pool/lowest'/><backingStore/></backingStore>
    </backingStore>
    <mirror type='file'><source file='/pool/copy'/></mirror>
  </disk>
  <disk type='volume'><source pool='poclab' volume='a-volume'/></disk>
  <disk type='block'><source dev='/dev/sda'/></disk>
  <disk type='network'><source protocol='rbd' name='pool/image'/></disk>
  <disk type='file' device='cdrom'><target dev='sda'/></disk>
  <interface type='network'><source network='lan'/></interface>
  <serial type='file'><source path='/pool/log'/></serial>
</devices></domain>
"""


def test_every_disk_of_a_domain_is_found_with_what_is_below_it() -> None:
    assert list(sources(DOMAIN)) == [
        ("", "/pool/top"),
        ("", "/pool/below"),
        ("", "/pool/lowest"),
        ("", "/pool/copy"),
        ("poclab", "a-volume"),
        ("", "/dev/sda"),
    ]


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("", []),
        ("/pool/base", ["/pool/base"]),
        ("base", ["/here/base"]),
        ("../pool/./base", ["/pool/base"]),
        ("file:/pool/base", ["/pool/base"]),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/pool/base"}}',
         ["/pool/base"]),
        ('json:{"driver":"qcow2","file.filename":"/pool/base"}', ["/pool/base"]),
        ('json:{"filename":7}', []),
        ('json:{"filename":"a\\u0000b"}', []),
        ("json:{", []),
        ("json:" + '{"a":' * 100_000, []),
    ],
)  # fmt: skip
def test_what_the_name_of_a_backing_file_means(name: str, paths: list[str]) -> None:
    assert named_files(name, "/here") == paths


def qcow2(path: Path, backing: str = "") -> Path:
    """A real qcow2 file; what is below it need not be there."""
    below = ["-u", "-b", backing, "-F", "qcow2"] if backing else []
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), "1M"]
    subprocess.run(argv, check=True, timeout=60)
    return path


def test_the_header_names_the_backing_file(tmp_path: Path) -> None:
    assert backing_file(qcow2(tmp_path / "alone")) == ""
    assert backing_file(qcow2(tmp_path / "over", "/pool/bäse,x")) == "/pool/bäse,x"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"QFI\xfb",
        b"\0" * 512,
        b"QFI\xfb" + b"\xff" * 508,  # the name far beyond the end
        b"QFI\xfb\0\0\0\3" + (100).to_bytes(8) + (1 << 30).to_bytes(4) + b"\0" * 100,
    ],
)
def test_what_is_no_qcow2_stands_on_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert backing_file(path).strip("\0") == ""


def test_a_fifo_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert backing_file(tmp_path / "fifo") == ""


def domain(*files: Path) -> str:
    """A domain with disks; its XML names no backing files, as one that is off does not."""
    disks = "".join(f"<disk><source file='{path}'/></disk>" for path in files)
    return f"<domain><devices>{disks}</devices></domain>"


def test_a_chain_is_followed_through_the_files(tmp_path: Path) -> None:
    pool, other = tmp_path / "pool", tmp_path / "other"
    pool.mkdir()
    other.mkdir()
    qcow2(pool / "base")
    qcow2(pool / "overlay", str(pool / "base"))
    qcow2(other / "mine", "../pool/overlay")
    (tmp_path / "alias").symlink_to(pool)
    (other / "link").symlink_to(pool / "linked")
    qcow2(pool / "linked")
    qcow2(pool / "x")
    usage = Usage(None, str(tmp_path / "alias"), local=True)
    assert usage.of([domain(other / "mine")]) == {"overlay", "base"}
    assert usage.of([domain(pool / "base")]) == {"base"}
    assert usage.of([domain(other / "link"), domain(tmp_path / "alias/x")]) == {"linked", "x"}


def test_a_loop_of_backing_files_ends(tmp_path: Path) -> None:
    qcow2(tmp_path / "a", "b")
    qcow2(tmp_path / "b", "a")
    usage = Usage(None, str(tmp_path), local=True)
    assert usage.of([domain(tmp_path / "a")]) == {"a", "b"}
