"""Text of strangers on its way into commands, scripts, options and XML: it stays one value."""

from __future__ import annotations

import shlex
from dataclasses import replace
from xml.etree.ElementTree import Element

import pytest

from poclab.builders import esp, installer, kernel
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import Result
from poclab.definitions import domain, metadata, network, profiles
from poclab.definitions.xml import domain_xml
from poclab.guest import bootc, ssh
from poclab.guest.bootc import BootcGuest
from poclab.guest.credentials import oem_strings
from poclab.model.lab import Mode
from poclab.model.record import NicRecord
from tests.support import make

RECORD = make.record("vm1")
SESSION = profiles.HostTraits(session=True, kvm=False, owner="ann")


def test_a_name_from_a_record_adds_no_option_to_qemu() -> None:
    assert "hostname=vm1" in list(network.session_network(RECORD, SESSION))[1].split(",")
    for name in ("vm1,hostfwd=tcp::22-:22", "vm1,smb=/", "", "a b"):
        with pytest.raises(UsageError):
            list(network.session_network(replace(RECORD, name=name), SESSION))


@pytest.mark.parametrize("mac", ["52:54:00:00:00:01,romfile=/etc/shadow", "x", ""])
def test_a_mac_address_from_a_record_adds_no_option_to_qemu(mac: str) -> None:
    record = replace(RECORD, nics=(NicRecord("lan", mac, None, Mode.NAT),))
    with pytest.raises(UsageError, match="invalid MAC address"):
        list(network.session_network(record, SESSION))


def test_kernel_arguments_stay_one_argument_of_a_kickstart() -> None:
    text = installer.asking("quiet x='y'\nclearpart --all\n%pre\nrm -rf /\n%end")
    *_, last = text.splitlines()
    assert shlex.split(last)[1] == "--append=quiet x='y' clearpart --all %pre rm -rf / %end"
    assert [line for line in text.splitlines() if line.startswith(("clearpart", "%"))] == []


@pytest.mark.parametrize(
    ("hostname", "user", "key", "networks"),
    [
        ("vm1\nio.systemd.credential:x=y", "root", "ssh-ed25519 AAAA", ()),
        ("vm1", "root /etc - -\nf /x", "ssh-ed25519 AAAA", ()),
        ("vm1", "../../etc", "ssh-ed25519 AAAA", ()),
        ("vm1", "root", "ssh-ed25519 AAAA\ncommand", ()),
        ("vm1", "root", "", (("52:54:00:00:00:01\n[Network]", "10.0.0.1/24"),)),
        ("vm1", "root", "", (("52:54:00:00:00:01", "10.0.0.1/24\nDNS=1"),)),
    ],
)
def test_what_a_guest_is_told_is_checked(
    hostname: str, user: str, key: str, networks: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(UsageError):
        oem_strings(hostname, user, key, networks)


def test_a_kernel_version_cannot_end_a_line_of_the_loader_entry() -> None:
    with pytest.raises(PoclabError, match="has no kernel"):
        kernel.find_kernel(["boot/vmlinuz-6\noptions x", "boot/initrd.img-6\noptions x"])


def test_a_partition_table_is_made_of_numbers_and_ids_alone() -> None:
    assert all(isinstance(value, int) for value in vars(esp.Layout(1, 2)).values())


def test_a_script_for_root_is_one_word_whatever_the_user_is() -> None:
    words = ssh.as_root("a; rm -rf /", "true")
    assert words[:4] == ("sudo", "-n", "sh", "-c")
    assert "rm" not in " ".join(words)


@pytest.mark.parametrize("free", ["9" * 5000, "-1", "1e9", "\u0669", ""])
def test_a_guest_s_free_space_is_a_number_or_an_error(
    free: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 9 9 {free} 1% /\n"
    monkeypatch.setattr(bootc, "run", lambda *_a, **_o: Result(("ssh",), 0, said, ""))
    guest = BootcGuest.__new__(BootcGuest)
    monkeypatch.setattr(guest, "_argv", lambda *_a: [])
    guest._path = "acme/vm1"
    with pytest.raises(PoclabError):
        guest.check_room(1)


def test_texts_in_xml_stay_texts() -> None:
    hostile = "a]]><x/>&\"'<!-- -->"
    element = metadata.vm_element(replace(RECORD, ssh_key=hostile))
    spec = domain.domain_spec(
        RECORD, SESSION, uuid=None, bases=(), path=str, console_log=None, oem_strings=(hostile,)
    )
    text = domain_xml(replace(spec, metadata=(element,)))
    assert "<x/>" not in text
    found = metadata.find(text, "vm")
    assert isinstance(found, Element)
    assert metadata.vm_record(found).ssh_key == hostile
