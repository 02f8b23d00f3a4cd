"""A disk is read only when its header, and all below it, is what the record says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.core.errors import PoclabError
from poclab.disks.qcow2_header import head_of, read_head
from poclab.labs import chain
from poclab.model.record import Frozen, VmRecord
from poclab.model.version import Ref
from poclab.model.version_volumes import base_volume, bases
from tests.hostile import overlays
from tests.support import make

FROZEN = "overlay.acme.vm1.00000000.qcow2"
RECORD = make.record(
    parents=(make.digest(Ref("shop", "v0")),),
    frozen=(Frozen("", FROZEN),),
    disks=(make.disk("tmp"), make.disk("kept", keep=True)),
)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """The disks of `RECORD`, as poclab makes them: bases name each other without a directory."""
    directory = tmp_path / "pool"
    directory.mkdir()
    top, below = bases(RECORD)
    overlays.make(directory / below)
    overlays.make(directory / top, below)
    overlays.make(directory / FROZEN, str(directory / top))
    overlays.make(directory / RECORD.overlay, str(directory / FROZEN))
    (directory / "secret").write_bytes(b"root:$6$secret\n" * 1000)
    return directory


def check(directory: Path, record: VmRecord = RECORD) -> None:
    chain.check(directory, chain.system_chain(record), record.path)


def test_what_poclab_made_passes(pool: Path, tmp_path: Path) -> None:
    check(pool)
    (tmp_path / "alias").symlink_to(pool)
    check(tmp_path / "alias")
    assert list(chain.data_chains(RECORD)) == [
        ("scratch.acme.vm1.tmp.00000001.qcow2",),
        ("data.acme.vm1.kept.qcow2",),
    ]


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("forgery", overlays.FORGERIES)
def test_a_forged_header_anywhere_in_the_chain_is_refused(
    pool: Path, forgery: str, level: int
) -> None:
    name = chain.system_chain(RECORD)[level]
    overlays.FORGERIES[forgery](pool / name)
    with pytest.raises(PoclabError, match="is not what its record says") as caught:
        check(pool)
    assert caught.value.why.startswith(name)
    assert "poclab reset acme/vm1 --to TAG" in caught.value.fix


def test_another_volume_of_the_pool_is_refused_too(pool: Path) -> None:
    other = base_volume(make.digest(Ref("other", "v1")))
    overlays.make(pool / other)
    overlays.renamed_backing(pool / FROZEN, str(pool / other))
    with pytest.raises(PoclabError, match=rf"{FROZEN} stands on '{pool}/{other}'"):
        check(pool)
    with pytest.raises(PoclabError, match="stands on"):
        check(pool, replace(RECORD, parents=()))
    (pool / FROZEN).unlink()
    with pytest.raises(PoclabError, match="No such file"):
        check(pool)


def test_a_disk_below_that_is_taken_for_a_raw_one_is_refused(pool: Path) -> None:
    (pool / RECORD.overlay).unlink()
    overlays.make(pool / RECORD.overlay, str(pool / FROZEN), form="raw")
    with pytest.raises(PoclabError, match="takes the disk below for 'raw'"):
        check(pool)


@given(st.binary(max_size=600), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_bytes_are_a_header_or_none(rest: bytes, offset: int, length: int) -> None:
    data = b"QFI\xfb\0\0\0\3" + offset.to_bytes(8) + length.to_bytes(4) + rest
    found = read_head(data)
    assert found is None or len(found.backing) <= 1023


def test_a_name_far_behind_is_found_and_one_beyond_the_first_cluster_is_not(tmp_path: Path) -> None:
    path = overlays.make(tmp_path / "a.qcow2", "/pool/below")
    with path.open("r+b") as file:
        file.seek(8)
        file.write((1 << 20).to_bytes(8))
        file.seek(1 << 20)
        file.write(b"/pool/other")
    found = head_of(path)
    assert found
    assert found.backing == "/pool/other"
    with path.open("r+b") as file:
        file.seek(8)
        file.write((1 << 40).to_bytes(8))
    found = head_of(path)
    assert found
    assert found.backing == ""
