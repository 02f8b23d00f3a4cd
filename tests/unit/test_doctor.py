"""What `doctor` says of KVM: whether QEMU, which is not libvirtd, may open the device."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from poclab import doctor
from poclab.doctor import kvm_denied
from poclab.virt.design import HostTraits
from poclab.virt.host import Host

# An account that every system has, with a group of its own, and IDs that nobody has.
NOBODY = pwd.getpwnam("nobody")
UID, GID = 54321, 54321


def device(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    """The status of a device file."""
    return os.stat_result((stat.S_IFCHR | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "user"),
    [
        (device(0o666), (UID, GID)),
        (device(0o660, gid=GID), (UID, GID)),
        (device(0o660, gid=NOBODY.pw_gid), (NOBODY.pw_uid, GID)),
        (device(0o600, uid=UID), (UID, GID)),
        (device(0o600), (0, 0)),
    ],
    ids=["everybody", "its group", "a group of its account", "its own", "root"],
)
def test_qemu_may_open_it(found: os.stat_result, user: tuple[int, int]) -> None:
    assert kvm_denied(found, *user) == ""


@pytest.mark.parametrize(
    ("found", "user", "expected"),
    [
        (
            device(0o600),
            (NOBODY.pw_uid, GID),
            "runs as nobody and may not open /dev/kvm (group root",
        ),
        (device(0o600), (UID, GID), 'udev rule KERNEL=="kvm", GROUP="kvm", MODE="0660"'),
        (device(0o660), (UID, GID), "chgrp kvm /dev/kvm"),
        (device(0o660, gid=NOBODY.pw_gid), (UID, GID), f" {UID}"),
        (device(0o660, gid=4242), (UID, GID), f"(group 4242, mode 0660): usermod -aG 4242 {UID}"),
        (device(0o640, gid=GID), (UID, GID), "chmod 660 /dev/kvm"),
        (device(0o066, uid=UID), (UID, GID), "mode 0066"),
    ],
)
def test_qemu_may_not_open_it(found: os.stat_result, user: tuple[int, int], expected: str) -> None:
    help_ = kvm_denied(found, *user)
    assert expected in help_
    assert "\n" not in help_


@dataclass(frozen=True)
class KvmHost:
    """A stand-in: a host where KVM works, which no test machine has to be."""

    session: bool = False
    local: bool = True
    kvm: bool = True

    @property
    def traits(self) -> HostTraits:
        return HostTraits(session=self.session, kvm=self.kvm, owner="0")

    def qemu_user(self) -> tuple[int, int]:
        return UID, GID


@pytest.mark.parametrize(
    ("host", "result"),
    [
        (KvmHost(), "missing"),
        (KvmHost(kvm=False), "note"),
        (KvmHost(session=True), "ok"),
        (KvmHost(local=False), "ok"),
    ],
    ids=["system", "tcg", "session", "elsewhere"],
)
def test_it_is_said_where_kvm_would_be_chosen(
    host: Any, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kvm"
    file.touch(mode=0o600)
    monkeypatch.setattr(doctor, "_KVM", file)
    check = doctor._acceleration(cast(Host, host))
    assert (check.check, check.result) == ("acceleration", result)
    monkeypatch.setattr(doctor, "_KVM", tmp_path / "none")
    assert doctor._acceleration(cast(Host, host)).result != "missing"
