"""What a domain's XML says of its system disk."""

from __future__ import annotations

from poclab.virt.block_jobs import SystemDisk, system_disk

DATA = "<disk><source file='/p/data'/><target dev='vdb'/></disk>"
CDROM = "<disk device='cdrom'><target dev='sda'/></disk>"
BELOW = "<backingStore><source file='/p/base'/><backingStore/></backingStore>"
COPY = "<mirror job='copy'{}><source file='/p/new'/></mirror>"


def read(*disks: str) -> SystemDisk | None:
    return system_disk(f"<domain><devices>{''.join(disks)}</devices></domain>")


def system(more: str = "") -> str:
    boot = "<target dev='vda'/><boot order='1'/>"
    return f"<disk><source file='/p/top'/>{more}{boot}</disk>"


def test_its_files_from_the_top_down_and_the_other_disks() -> None:
    found = SystemDisk("vda", ("/p/top", "/p/base"), job=False, ready=False, others=("vdb", "sda"))
    assert read(DATA, system(BELOW), CDROM) == found


def test_what_libvirt_did_not_note_is_not_made_up() -> None:
    found = read(system())
    assert found
    assert found.chain == ("/p/top",)


def test_a_copy_is_no_part_of_the_chain_and_ready_when_it_caught_up() -> None:
    for more, ready in (("", False), (" ready='abort'", False), (" ready='yes'", True)):
        found = read(system(BELOW + COPY.format(more)))
        assert found
        assert (found.chain, found.job, found.ready) == (("/p/top", "/p/base"), True, ready)


def test_a_domain_may_have_none() -> None:
    assert read(DATA, CDROM) is None
    assert read(system().replace("file='/p/top'", "dev='/dev/sdz'")) is None
