"""Debian with systemd, from an image that knows nothing of poclab, in qemu:///session."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hosts, labs, shop
from tests.support.onelab import OneLab, one_lab

# Without KVM on a busy machine a boot takes minutes.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def lab() -> Iterator[OneLab]:
    with hosts.session() as host:
        shop.debian(host, "v12")
        with one_lab(host) as made:
            made.write(
                "deb: {image: 'debian:v12', networks: [{name: lan, ip: 10.77.5.30}], disk: 3GiB}",
                networks="lan: {mode: nat, cidr: 10.77.5.0/24}",
                defaults="memory: 512MiB, ready: {ssh: true, timeout: 500}",
            )
            host.poclab("up", made.path, timeout=550)
            yield made


def ssh(lab: OneLab, *words: str) -> str:
    return shop.ssh(lab.host, f"{lab.name}/deb", *words)


def test_it_boots_and_is_told_its_address_and_key(lab: OneLab) -> None:
    assert "Debian GNU/Linux 12" in ssh(lab, "cat", "/etc/os-release")
    assert ssh(lab, "cat", "/proc/1/comm") == "systemd\n"
    assert re.search(r"inet 10\.77\.5\.30/24", ssh(lab, "ip", "-o", "address"))
    order = ssh(lab, "systemctl", "show", "--property=After", "systemd-networkd")
    assert "systemd-tmpfiles-setup.service" in order
    assert "ordering cycle" not in ssh(lab, "journalctl", "--boot", "--no-pager")
    kib = int(ssh(lab, "df -k / | tail -n 1").split()[1])
    assert kib > 2.5 * 1024**2


def test_committed_as_it_runs_it_does_not_notice(lab: OneLab) -> None:
    """Its services go on, and the version's file system is as clean as after a shutdown."""
    host, args = lab.host, ("commit", f"{lab.name}/deb", "--as", "debian:live")
    ssh(lab, "echo before > /srv/file; systemctl stop qemu-guest-agent")
    before = labs.look(host)
    deaf = host.poclab(*args, check=False)
    assert f"{lab.name}/deb runs, and its guest agent does not answer" in deaf.stderr
    assert labs.look(host) == before
    ssh(lab, "systemctl start qemu-guest-agent")
    ticker = "systemd-run --unit=ticker sh -c 'while sleep 0.2; do date >> /srv/ticks; done'"
    ssh(lab, ticker)
    # The 22nd field of stat is the time since the boot that PID 1 began at; see proc(5).
    same = "cat /proc/sys/kernel/random/boot_id; cut -d' ' -f22 /proc/1/stat; pidof -s qemu-ga"
    same += "; systemctl show --property=MainPID,NRestarts ssh ticker"
    was, run = ssh(lab, same), lab.run_id("deb")
    host.poclab(*args)
    assert (ssh(lab, same), lab.run_id("deb")) == (was, run)
    ticks = int(ssh(lab, "wc -l < /srv/ticks"))
    ssh(lab, "echo after > /srv/file; sleep 1; sync")
    assert int(ssh(lab, "wc -l < /srv/ticks")) > ticks
    assert not needs_recovery(lab, labs.base(host, "debian:live"))
    assert needs_recovery(lab, lab.disks("deb")[0])
    host.poclab("reset", f"{lab.name}/deb", "--to", "live", timeout=550)
    assert ssh(lab, "cat", "/srv/file") == "before\n"
    assert int(ssh(lab, "wc -l < /srv/ticks")) <= ticks


def needs_recovery(lab: OneLab, volume: str) -> bool:
    """Whether the journal of the root file system holds anything, as it does while in use.

    s_feature_incompat, bit EXT4_FEATURE_INCOMPAT_RECOVER (Linux, Documentation/filesystems/ext4/
    super.rst); a file system that is frozen has none, like one that was unmounted.
    """
    raw = lab.host.scratch / "disk.raw"
    path = f"{labs.look(lab.host)['directory']}/{volume}"
    lab.host.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, str(raw))
    table = json.loads(lab.host.run("sfdisk", "--json", str(raw)).stdout)["partitiontable"]
    root = max(table["partitions"], key=lambda part: int(part["size"]))
    with Path(raw).open("rb") as file:
        file.seek(root["start"] * 512 + 1024)
        superblock = file.read(1024)
    raw.unlink()
    assert superblock[0x38:0x3A] == b"\x53\xef"
    return bool(int.from_bytes(superblock[0x60:0x64], "little") & 4)
