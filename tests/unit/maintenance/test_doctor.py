"""What `doctor` says of KVM: whether QEMU, which is not libvirtd, may open the device."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from poclab.core.errors import PoclabError
from poclab.core.events import Event, listening
from poclab.maintenance.repair import REPAIRS
from poclab.virt import kvm
from poclab.virt.host import Host, connect

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
    assert kvm.judged(found, *user) == ""


@pytest.mark.parametrize(
    ("found", "user", "expected"),
    [
        (
            device(0o600),
            (NOBODY.pw_uid, GID),
            "runs as nobody and may not open /dev/kvm (group root",
        ),
        (device(0o660), (UID, GID), "(group root, mode 0660)"),
        (device(0o660, gid=NOBODY.pw_gid), (UID, GID), f" {UID}"),
        (device(0o660, gid=4242), (UID, GID), "(group 4242, mode 0660)"),
        (device(0o640, gid=GID), (UID, GID), "mode 0640"),
        (device(0o066, uid=UID), (UID, GID), "mode 0066"),
    ],
)
def test_qemu_may_not_open_it(found: os.stat_result, user: tuple[int, int], expected: str) -> None:
    help_ = kvm.judged(found, *user)
    assert expected in help_
    assert "\n" not in help_


@dataclass(frozen=True)
class KvmHost:
    """A stand-in: a host with a system daemon, which no test machine has to have."""

    session: bool = False
    local: bool = True

    def qemu_user(self) -> tuple[int, int]:
        return UID, GID

    def kvm_denied(self) -> str:
        return Host.kvm_denied(cast(Host, self))


@pytest.mark.parametrize(
    ("host", "denied"),
    [(KvmHost(), True), (KvmHost(session=True), False), (KvmHost(local=False), False)],
    ids=["system", "session", "elsewhere"],
)
def test_it_is_said_where_qemu_has_an_account_of_its_own(
    host: KvmHost, denied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kvm"
    file.touch(mode=0o600)
    monkeypatch.setattr(kvm, "DEVICE", file)
    assert bool(host.kvm_denied()) is denied
    monkeypatch.setattr(kvm, "DEVICE", tmp_path / "none")
    assert host.kvm_denied() == ""


def test_doctor_names_the_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kvm"
    file.touch(mode=0o600)
    monkeypatch.setattr(kvm, "DEVICE", file)
    (repair,) = [one for one in REPAIRS if one.name == "/dev/kvm"]
    host = cast(Host, KvmHost())
    assert repair.applies(host)
    result, help_ = repair.look(host)
    assert (result, "`sudo poclab doctor --fix`" in help_) == ("missing", True)
    file.chmod(0o666)
    assert repair.look(host)[0] == "ok"


def test_only_the_kernels_device_is_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kvm"
    file.touch(mode=0o600)
    (tmp_path / "link").symlink_to("/dev/kvm")
    for name in ("kvm", "link"):
        monkeypatch.setattr(kvm, "DEVICE", tmp_path / name)
        monkeypatch.setattr(kvm, "GROUP", grp.getgrgid(os.getgid()).gr_name)
        with pytest.raises(PoclabError, match="is not the kernel's device"):
            list(kvm.give((UID, GID)))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_missing_group_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "GROUP", "no-such-group")
    with pytest.raises(PoclabError, match="group no-such-group not found") as caught:
        list(kvm.give((UID, GID)))
    assert "groupadd" in caught.value.fix


def test_a_closed_device_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever defines or starts guests, such as `up` and `reset`: each asks for the traits."""
    monkeypatch.setattr(Host, "kvm_denied", lambda _host: "QEMU may not open it")
    warnings: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    with connect("test:///default", "tcg") as host, listening(listen):
        assert host.traits == host.traits
    (warning,) = warnings
    assert warning.startswith("QEMU may not open it, so libvirt probes QEMU again and again")
    assert "`sudo poclab doctor --fix`" in warning
