"""Which disks may be written over, by trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core.errors import PoclabError, UsageError
from poclab.disks import removable as devices
from poclab.disks.removable import Stick
from tests.support.sysfs import MIB, SATA, USB, Sysfs

SDB = Path("/dev/sdb")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def look(sysfs: Sysfs, number: tuple[int, int] = (8, 16), node: Path = SDB) -> Stick:
    return devices.describe(node, number, sysfs.roots)


def test_a_stick(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", parts=["sdb1"])
    found = look(sysfs)
    assert found == Stick(SDB, (8, 16), 16 * 1024 * MIB, "SanDisk Ultra Fit", "4C530001", "7")
    assert str(found) == "/dev/sdb (SanDisk Ultra Fit, 16 GiB, serial 4C530001)"


def test_a_disk_on_usb_that_calls_itself_fixed(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", removable=False, more={"device/serial": "own"})
    assert look(sysfs).serial == "own"


def test_a_card_in_a_reader_of_another_bus(sysfs: Sysfs) -> None:
    # What has no serial number of its own is not given that of something above it.
    sysfs.disk("mmcblk0", "179:0", where="pci0000:00/0000:02:00.0/mmc_host/mmc0/mmc0:0001")
    found = look(sysfs, (179, 0), Path("/dev/mmcblk0"))
    assert (found.serial, found.size) == ("", 16 * 1024 * MIB)
    assert "no serial number" in str(found)


@pytest.mark.parametrize(("kind", "fine"), [("SD", True), ("MMC", False)])
def test_a_card_in_a_slot_and_a_chip_on_the_board(sysfs: Sysfs, kind: str, fine: bool) -> None:
    where = "platform/soc/mmc_host/mmc0/mmc0:0001"
    sysfs.disk("mmcblk0", "179:0", where=where, removable=False, more={"device/type": kind})
    try:
        found = look(sysfs, (179, 0), Path("/dev/mmcblk0")).size > 0
    except PoclabError:
        found = False
    assert found is fine


def test_a_disk_that_is_built_in(sysfs: Sysfs) -> None:
    sysfs.disk("sda", "8:0", where=SATA, removable=False)
    with pytest.raises(PoclabError, match="must not be written over") as caught:
        look(sysfs, (8, 0), Path("/dev/sda"))
    assert caught.value.why == "it is neither removable nor on USB"


def test_a_partition(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", parts=["sdb1"])
    with pytest.raises(UsageError, match="is a partition") as caught:
        look(sysfs, (8, 17), Path("/dev/sdb1"))
    assert caught.value.fix == "name the whole disk: /dev/sdb"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"ro": "1"}, "it is read-only"),
        ({"size": "0"}, "there is no medium in it"),
        ({"device/type": "5"}, "it is a drive for discs"),
    ],
)
def test_what_cannot_be_written(sysfs: Sysfs, more: dict[str, str], why: str) -> None:
    sysfs.disk("sdb", more=more)
    with pytest.raises(PoclabError) as caught:
        look(sysfs)
    assert caught.value.why == why


@pytest.mark.parametrize(
    ("number", "source"),
    [
        ("8:16", "/dev/sdb"),
        ("8:17", "/dev/sdb1"),
        # By number alone (a link's name), by name alone (btrfs has numbers of its own).
        ("8:17", "/dev/disk/by-label/DATA"),
        ("0:44", "/dev/sdb1"),
    ],
)
def test_mounted(sysfs: Sysfs, number: str, source: str) -> None:
    sysfs.disk("sdb", parts=["sdb1"])
    sysfs.mount(number, source, "/media/my\\040stick")
    with pytest.raises(PoclabError) as caught:
        look(sysfs)
    assert caught.value.why == f"{source} is mounted on /media/my stick"
    assert caught.value.fix == "sudo umount '/media/my stick'"


def test_other_mounts_and_swaps_do_not_matter(sysfs: Sysfs) -> None:
    sysfs.disk("sdb", parts=["sdb1"])
    sysfs.mount("8:1", "/dev/sda1", "/")
    sysfs.mount("8:161", "/dev/sdb11", "/x")
    sysfs.swap("/dev/sda2")
    assert look(sysfs).path == SDB


@pytest.mark.parametrize("part", ["sdb", "sdb1"])
def test_part_of_something_else(sysfs: Sysfs, part: str) -> None:
    directory = sysfs.disk("sdb", parts=["sdb1"])
    sysfs.hold(directory if part == "sdb" else directory / part, "dm-3")
    with pytest.raises(PoclabError) as caught:
        look(sysfs)
    assert caught.value.why == f"{part} is part of dm-3 (LVM, RAID, encryption)"


@pytest.mark.parametrize("source", ["/dev/sdb", "/dev/sdb1"])
def test_swap(sysfs: Sysfs, source: str) -> None:
    sysfs.disk("sdb", parts=["sdb1"])
    sysfs.swap(source)
    with pytest.raises(PoclabError) as caught:
        look(sysfs)
    assert caught.value.why == f"{source} is swap"


@settings(max_examples=40)
@given(
    removable=st.booleans(),
    usb=st.booleans(),
    read_only=st.booleans(),
    empty=st.booleans(),
    parts=st.integers(0, 3),
    used=st.sets(st.tuples(st.sampled_from(["mount", "swap", "hold"]), st.integers(0, 3))),
)
def test_only_a_free_one_that_can_be_taken_out(
    tmp_path_factory: pytest.TempPathFactory,
    removable: bool,
    usb: bool,
    read_only: bool,
    empty: bool,
    parts: int,
    used: set[tuple[str, int]],
) -> None:
    """Whatever else is true of a disk, each of these alone decides."""
    sysfs = Sysfs(tmp_path_factory.mktemp("sys"))
    names = [f"sdb{number}" for number in range(1, parts + 1)]
    directory = sysfs.disk(
        "sdb",
        removable=removable,
        size=0 if empty else MIB,
        more={"ro": str(int(read_only))},
        parts=names,
        where=USB if usb else SATA,
    )
    busy = False
    for how, part in used:
        name = "sdb" if part == 0 else f"sdb{part}"
        there = part <= parts
        busy = busy or there
        if how == "mount":
            sysfs.mount(f"8:{16 + part}" if there else "8:1", f"/dev/{name}x", "/mnt")
        elif how == "swap":
            sysfs.swap(f"/dev/{name}" if there else "/dev/sda9")
        elif there:
            sysfs.hold(directory if part == 0 else directory / name, "md0")
    wanted = (removable or usb) and not read_only and not empty and not busy
    try:
        found = look(sysfs).size == MIB
    except PoclabError:
        found = False
    assert found is wanted


def test_what_is_no_disk(tmp_path: Path, sysfs: Sysfs) -> None:
    with pytest.raises(UsageError, match="cannot be found"):
        devices.find(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no disk"):
        devices.find(tmp_path / "file")
    with pytest.raises(UsageError, match="is no disk"):
        devices.find(Path("/dev/null"))
    with pytest.raises(PoclabError, match="unknown to the kernel"):
        look(sysfs)


def verdict(link: Path) -> str:
    """What is said of a disk of this machine."""
    major, minor = map(int, link.name.split(":"))
    node = Path("/dev") / link.resolve().name
    try:
        return str(devices.describe(node, (major, minor)))
    except PoclabError as refusal:
        return refusal.what


def test_the_kernels_own_tree_can_be_read() -> None:
    """No disk of this machine makes it fail in another way than by a refusal."""
    found = {link: verdict(link) for link in Path("/sys/dev/block").iterdir()}
    assert found
    assert all(f"/dev/{link.resolve().name}" in text for link, text in found.items())
