"""What a guest with systemd is told at boot, without touching its image.

SMBIOS type 11 strings ("OEM strings") are system credentials for systemd: smbios-type-11(7),
systemd.system-credentials(7). Which version of systemd in the guest reads what:

- 252: the strings themselves, and `tmpfiles.extra` (tmpfiles.d lines: keys, network files);
- 254: `system.hostname`; a name in /etc/hostname goes before it;
- 256: `network.network.*`. Older ones get the same files from tmpfiles.extra, which comes too
  late for a systemd-networkd that starts before systemd-tmpfiles-setup.service. Nothing in
  those versions orders the two: the builder `direct` does, other images should.

The files are written anew at each boot from what the domain says. Network files name their NIC
by its MAC address, so one that outlives its NIC on a disk applies to nothing.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from ipaddress import IPv4Interface
from uuid import NAMESPACE_URL, uuid5

from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import shown

_TEXT = "io.systemd.credential:"
_BINARY = "io.systemd.credential.binary:"

# The SMBIOS 2.1 entry point has 16 bits for the length of all tables, and QEMU refuses to start
# beyond ("SMBIOS 2.1 table length N exceeds 65535"). The rest is for the other tables: those of
# memory (type 17: below 100 bytes each 16 GiB) and of processors (type 4: below 100 a socket).
_BYTES_MAX = 48 * 1024
_STRINGS_MAX = 255  # type 11 counts its strings in one byte (DMTF DSP0134, 7.12)

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")  # systemd.io/USER_NAMES, strict mode
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # one label, hostname(7)


def oem_strings(
    hostname: str,
    user: str,
    ssh_public_key: str,
    networks: Sequence[tuple[str, str]] = (),
) -> tuple[str, ...]:
    """The SMBIOS type 11 strings for a VM.

    Args:
        hostname: the guest's name.
        user: the user who may log in with the key; has to exist in the guest.
        ssh_public_key: one line of authorized_keys, or an empty string for none.
        networks: for each NIC that is set up statically, its MAC address and its address with
            the prefix length (`10.77.1.20/24`).

    Raises:
        UsageError: a part is not what it has to be.
        PoclabError: it is too much for SMBIOS tables.
    """
    if not _HOST.fullmatch(hostname):
        raise UsageError(f"{shown(hostname)} is no host name")
    strings = [f"{_TEXT}system.hostname={hostname}"]
    lines = tmpfiles(user, ssh_public_key, networks)
    if lines:
        strings.append(f"{_BINARY}tmpfiles.extra={_base64(lines)}")
    for number, (mac, address) in enumerate(networks):
        text = _base64(_networkd_file(mac, address))
        strings.append(f"{_BINARY}network.network.10-poclab-{number}={text}")
    size = sum(len(string) + 1 for string in strings)
    if size > _BYTES_MAX or len(strings) > _STRINGS_MAX:
        raise PoclabError(
            f"too much configuration for {hostname}: {size} bytes in {len(strings)} strings",
            why=f"SMBIOS tables hold {_BYTES_MAX} bytes in {_STRINGS_MAX} strings of it",
            fix="give the VM fewer NICs with static addresses",
        )
    return tuple(strings)


def tmpfiles(user: str, ssh_public_key: str, networks: Sequence[tuple[str, str]] = ()) -> str:
    """The same as tmpfiles.d(5) lines; see `oem_strings` for the arguments and errors."""
    lines = _key_lines(user, ssh_public_key) if ssh_public_key else []
    if networks:
        # systemd-networkd drops root before it reads them; NetworkManager takes only what
        # nobody but root can read.
        lines.append("d /etc/systemd/network 0755 root root -")
        lines.append("d /etc/NetworkManager 0755 root root -")
        lines.append("d /etc/NetworkManager/system-connections 0700 root root -")
    for number, (mac, address) in enumerate(networks):
        lines.append(
            _file(
                f"/etc/systemd/network/10-poclab-{number}.network",
                "0644",
                "root",
                _networkd_file(mac, address),
            )
        )
        lines.append(
            _file(
                f"/etc/NetworkManager/system-connections/poclab-{number}.nmconnection",
                "0600",
                "root",
                _nm_file(number, mac, address),
            )
        )
    return "".join(f"{line}\n" for line in lines)


def _key_lines(user: str, key: str) -> list[str]:
    if not _USER.fullmatch(user):
        raise UsageError(f"{shown(user)} is no user name")
    if not key.isprintable() or len(key.split()) < 2:
        raise UsageError("the SSH public key is not one line of authorized_keys")
    home = "/root" if user == "root" else f"/home/{user}"
    # With ":" only for what does not exist yet: an existing home keeps its owner and mode.
    # The group stays root's: the user's own need not be called like the user, and sshd asks
    # only that no group can write.
    return [
        *([] if user == "root" else [f"d {home} :0700 :{user} - -"]),
        f"d {home}/.ssh 0700 {user} - -",
        _file(f"{home}/.ssh/authorized_keys", "0600", user, key.strip() + "\n"),
    ]


def _file(path: str, mode: str, user: str, text: str) -> str:
    # f+ replaces what is there, ~ says that the text is base64.
    return f"f+~ {path} {mode} {user} - - {_base64(text)}"


def _networkd_file(mac: str, address: str) -> str:
    """A systemd.network(5) file.

    Type=ether leaves out bridges and VLANs, which take over the MAC address of their port.
    """
    mac, address = _checked(mac, address)
    return f"""\
[Match]
MACAddress={mac}
Type=ether

[Link]
RequiredForOnline=no

[Network]
Address={address}
DHCP=no
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


def _nm_file(number: int, mac: str, address: str) -> str:
    """A NetworkManager keyfile, nm-settings-keyfile(5)."""
    mac, address = _checked(mac, address)
    return f"""\
[connection]
id=poclab-{number}
uuid={uuid5(NAMESPACE_URL, f"poclab:{mac}")}
type=ethernet
autoconnect-priority=100

[ethernet]
mac-address={mac}

[ipv4]
method=manual
address1={address}
never-default=true

[ipv6]
method=disabled
"""


def _checked(mac: str, address: str) -> tuple[str, str]:
    if not _MAC.fullmatch(mac):
        raise UsageError(f"{shown(mac)} is no MAC address")
    try:
        interface = IPv4Interface(address)
    except ValueError as error:
        raise UsageError(f"{shown(address)} is no IPv4 address with a prefix length") from error
    return mac, interface.with_prefixlen


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")
