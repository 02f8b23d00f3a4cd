"""SMBIOS strings: the text, and what systemd-tmpfiles makes of it."""

from __future__ import annotations

import os
import subprocess
from base64 import b64decode
from pathlib import Path
from stat import S_IMODE

import pytest

from poclab.core.errors import PoclabError, UsageError
from poclab.guest.credentials import oem_strings, tmpfiles

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB3Oi0cGUgrOmCZ0 poclab customer-a"
NICS = [("52:54:00:12:34:56", "10.77.1.20/24"), ("52:54:00:ab:cd:ef", "10.77.2.20/16")]
NETWORK = """\
[Match]
MACAddress=52:54:00:12:34:56
Type=ether

[Link]
RequiredForOnline=no

[Network]
Address=10.77.1.20/24
DHCP=no
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
KEYFILE = """\
[connection]
id=poclab-0
uuid=a820a628-5449-501d-a35d-23ee89b5d888
type=ethernet
autoconnect-priority=100

[ethernet]
mac-address=52:54:00:12:34:56

[ipv4]
method=manual
address1=10.77.1.20/24
never-default=true

[ipv6]
method=disabled
"""


def _decoded(strings: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for string in strings:
        kind, _, rest = string.partition(":")
        name, _, value = rest.partition("=")
        binary = kind == "io.systemd.credential.binary"
        assert binary or kind == "io.systemd.credential"
        found[name] = b64decode(value, validate=True).decode() if binary else value
    return found


def test_no_static_nic_means_no_network_file() -> None:
    assert _decoded(oem_strings("vm1", "root", KEY)) == {
        "system.hostname": "vm1",
        "tmpfiles.extra": (
            "d /root/.ssh 0700 root - -\n"
            "f+~ /root/.ssh/authorized_keys 0600 root - - "
            "c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUIzT2kwY0dVZ3JPbUNaMCBwb2NsYWIg"
            "Y3VzdG9tZXItYQo=\n"
        ),
    }


def test_each_static_nic_is_told_twice() -> None:
    found = _decoded(oem_strings("vm1", "root", KEY, NICS))
    assert list(found) == [
        "system.hostname",
        "tmpfiles.extra",
        "network.network.10-poclab-0",
        "network.network.10-poclab-1",
    ]
    assert found["network.network.10-poclab-0"] == NETWORK
    assert "10.77.2.20/16" in found["network.network.10-poclab-1"]


def test_without_a_key_and_nics_only_the_name_is_left() -> None:
    assert oem_strings("vm1", "root", "") == ("io.systemd.credential:system.hostname=vm1",)


def test_the_same_input_gives_the_same_strings() -> None:
    assert oem_strings("vm1", "root", KEY, NICS) == oem_strings("vm1", "root", KEY, NICS)


def _apply(root: Path, text: str) -> str:
    """Let systemd-tmpfiles read it as the credential it is in a guest."""
    secrets = root / "credentials"
    secrets.mkdir()
    (secrets / "tmpfiles.extra").write_text(text)
    done = subprocess.run(
        ["systemd-tmpfiles", "--create", f"--root={root}"],
        env={"PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": str(secrets)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nadmin:x:4711:4712:admin:/home/admin:/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nstaff:x:4712:\n")
    return root


def test_systemd_tmpfiles_makes_the_files(tmp_path: Path) -> None:
    root = _root(tmp_path)
    _apply(root, tmpfiles("root", KEY, NICS))
    keys = root / "root/.ssh/authorized_keys"
    assert keys.read_text() == KEY + "\n"
    assert S_IMODE(keys.stat().st_mode) == 0o600
    assert S_IMODE(keys.parent.stat().st_mode) == 0o700
    network = root / "etc/systemd/network/10-poclab-0.network"
    assert network.read_text() == NETWORK
    assert S_IMODE(network.stat().st_mode) == 0o644
    keyfile = root / "etc/NetworkManager/system-connections/poclab-0.nmconnection"
    assert keyfile.read_text() == KEYFILE
    assert (S_IMODE(keyfile.stat().st_mode), keyfile.stat().st_uid) == (0o600, 0)
    assert "10.77.2.20/16" in (network.parent / "10-poclab-1.network").read_text()


def test_systemd_tmpfiles_gives_another_user_the_key(tmp_path: Path) -> None:
    root = _root(tmp_path)
    _apply(root, tmpfiles("admin", KEY))
    for path, mode in (("", 0o700), (".ssh", 0o700), (".ssh/authorized_keys", 0o600)):
        found = (root / "home/admin" / path).stat()
        assert (found.st_uid, S_IMODE(found.st_mode)) == (4711, mode)
    assert not (root / "root").exists()


def test_systemd_tmpfiles_leaves_an_existing_home_alone(tmp_path: Path) -> None:
    root = _root(tmp_path)
    home = root / "home/admin"
    home.mkdir(parents=True)
    home.chmod(0o755)
    os.chown(home, 4711, 4712)
    _apply(root, tmpfiles("admin", KEY))
    found = home.stat()
    assert (S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 4711, 4712)
    assert (home / ".ssh/authorized_keys").read_text() == KEY + "\n"


def test_systemd_tmpfiles_replaces_an_old_key_beside_systemds_own_lines(tmp_path: Path) -> None:
    root = _root(tmp_path)
    keys = root / "root/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text("ssh-ed25519 AAAAold of another lab\n")
    (root / "usr/lib/tmpfiles.d").mkdir(parents=True)
    # The same paths as in systemd's provision.conf, which comes first.
    (root / "usr/lib/tmpfiles.d/provision.conf").write_text(
        "d- /root :0700 root :root -\n"
        "d- /root/.ssh :0700 root :root -\n"
        "f^ /root/.ssh/authorized_keys :0600 root :root - ssh.authorized_keys.root\n"
    )
    _apply(root, tmpfiles("root", KEY))
    assert keys.read_text() == KEY + "\n"
    assert S_IMODE(keys.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("host", "user", "key", "nics"),
    [
        ("vm1\n", "root", KEY, []),
        ("-x", "root", KEY, []),
        ("a" * 64, "root", KEY, []),
        ("vm1", "../x", KEY, []),
        ("vm1", "root - -\nf /etc/shadow", KEY, []),
        ("vm1", "root", "ssh-ed25519 AAAA\nssh-ed25519 BBBB", []),
        ("vm1", "root", "ssh-ed25519", []),
        ("vm1", "root", KEY, [("52:54:00:12:34:5", "10.77.1.20/24")]),
        ("vm1", "root", KEY, [("52:54:00:12:34:56", "10.77.1/24")]),
        ("vm1", "root", KEY, [("52:54:00:12:34:56", "10.77.1.20/24\n[Route]")]),
    ],
)
def test_nothing_can_be_slipped_in(
    host: str, user: str, key: str, nics: list[tuple[str, str]]
) -> None:
    with pytest.raises(UsageError):
        oem_strings(host, user, key, nics)


def test_too_much_for_the_tables_is_refused_with_the_limit_named() -> None:
    nics = [(f"52:54:00:00:00:{n:02x}", f"10.77.1.{n}/24") for n in range(1, 81)]
    with pytest.raises(PoclabError, match="too much configuration") as caught:
        oem_strings("vm1", "root", KEY, nics)
    assert "49152 bytes" in caught.value.why
    assert len(oem_strings("vm1", "root", KEY, nics[:16])) == 18


def _table(tmp_path: Path, length: int) -> str:
    """What QEMU says of one type 11 string of that length."""
    (tmp_path / "s").write_text("a" * length)
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-display", "none"),
            *("-nodefaults", "-smp", "16,sockets=16", "-m", "128M,maxmem=64G", "-S"),
            *("-monitor", "stdio", "-smbios", f"type=11,path={tmp_path / 's'}"),
        ],
        input="quit\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr


def test_qemu_takes_what_we_take(tmp_path: Path) -> None:
    assert "exceeds" not in _table(tmp_path, 48 * 1024)
    assert "exceeds" in _table(tmp_path, 64 * 1024)
