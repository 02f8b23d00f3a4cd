"""Lab files: what they mean, and every fault at its place."""

from __future__ import annotations

import re
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from poclab.core import units
from poclab.core.errors import PoclabError, Problems, UsageError
from poclab.model.lab import DataDisk, Forward, Lab, Mode, Network, Nic, Ready, Vm
from poclab.model.version import Ref
from poclab.schema import lab as schema
from tests.unit.model.test_names import BAD_NAMES

ROOT = Path(__file__).parents[3]
LABS = sorted((ROOT / "labs").glob("*.yaml"))

FULL = """\
name: customer-a
description: ACME web shop POC
networks:
  lan: {mode: nat, cidr: 10.77.1.0/24}
  back: {mode: isolated, cidr: 10.77.2.0/24}
defaults: {cpus: 4, memory: 1.5GiB, networks: [lan], user: admin, ready: {ssh: true, timeout: 5m}}
vms:
  no:
    image: shop-db:1.10
    networks: [{name: lan, ip: 10.77.1.20, mac: 52:54:00:AB:34:56}, back]
    disks: [{name: data, size: 5GiB, keep: true}, {name: scratch, size: 1500000}]
    disk: 20G
    cpus: 1
    memory: 256MiB
    user: root
    ready: {tcp: 443}
  on:
    image: shop:1e3
    after: [no]
    ports: [8080:80, "2222:22"]
  y:
    image: shop:0o17
    networks: []
    ready: {agent: true, timeout: 90}
"""


def lab_of(vms: str = "", networks: str = "", head: str = "") -> str:
    """A lab file around some lines; they begin at a known place."""
    return (
        f"name: a\n{head}networks:\n  lan: {{cidr: 10.77.1.0/24}}\n{networks}"
        f"vms:\n  db: {{image: shop:v1}}\n{vms}"
    )


def faults(text: str) -> list[str]:
    """The faults of a lab file, without its name; none when it is right."""
    try:
        schema.parse_lab(text, "lab.yaml")
    except Problems as error:
        caught = error
    else:
        return []
    assert caught.exit_code == 2
    assert caught.lines()[-1].startswith("lab.yaml is no valid lab file (")
    assert all(row.startswith("lab.yaml:") for row in caught.problems)
    return [row.removeprefix("lab.yaml:") for row in caught.problems]


def test_a_full_lab() -> None:
    lab = schema.parse_lab(FULL, "lab.yaml")
    assert lab == Lab(
        name="customer-a",
        description="ACME web shop POC",
        networks=(
            Network("lan", Mode.NAT, IPv4Network("10.77.1.0/24")),
            Network("back", Mode.ISOLATED, IPv4Network("10.77.2.0/24")),
        ),
        vms=(
            Vm(
                name="no",
                image=Ref("shop-db", "1.10"),
                cpus=1,
                memory=256 * units.MIB,
                networks=(
                    Nic("lan", IPv4Address("10.77.1.20"), "52:54:00:ab:34:56"),
                    Nic("back"),
                ),
                disks=(
                    DataDisk("data", 5 * units.GIB, keep=True),
                    DataDisk("scratch", 2 * units.MIB),  # rounded up
                ),
                ready=Ready("tcp", 443, 300),
                user="root",
                disk_size=20 * units.GIB,
            ),
            Vm(
                name="on",
                image=Ref("shop", "1e3"),
                cpus=4,
                memory=1536 * units.MIB,
                networks=(Nic("lan"),),
                after=("no",),
                ready=Ready("ssh", 0, 300),
                ports=(Forward(8080, 80), Forward(2222, 22)),
                user="admin",
            ),
            Vm(
                name="y",
                image=Ref("shop", "0o17"),
                cpus=4,
                memory=1536 * units.MIB,
                ready=Ready("agent", 0, 90),
                user="admin",
            ),
        ),
    )


def test_the_smallest_lab() -> None:
    lab = schema.parse_lab("name: a\nvms: {b: {image: c:d}}\n", "lab.yaml")
    assert lab == Lab("a", vms=(Vm("b", Ref("c", "d"), cpus=2, memory=2 * units.GIB),))


def test_the_order_of_the_file_is_kept() -> None:
    names = [f"v{number}" for number in (3, 1, 2, 10, 0)]
    text = "name: a\nvms:\n" + "".join(f"  {name}: {{image: c:d}}\n" for name in names)
    assert [vm.name for vm in schema.parse_lab(text, "f").vms] == names


def test_crlf_and_bom() -> None:
    assert schema.parse_lab("\ufeff" + FULL.replace("\n", "\r\n"), "f") == schema.parse_lab(
        FULL, "f"
    )


# Each: lines of VMs (they begin at line 6), and what is said.
VM_FAULTS = [
    ("  vm: {image: shop}", "6:15: vms.vm.image: 'shop' names no tag; write 'shop:TAG'"),
    ("  vm: {image: Shop:v1}", "6:15: vms.vm.image: 'Shop' is no image name"),
    ("  vm: {image: 'shop:'}", "6:15: vms.vm.image: '' is no tag"),
    ("  vm: {image: shop:../x}", "6:15: vms.vm.image: '../x' is no tag"),
    ("  vm: {image: [a]}", "6:15: vms.vm.image: must be one value, not a list"),
    ("  vm: {image: {a: b}}", "6:15: vms.vm.image: must be one value, not a mapping"),
    ("  vm: {}", "6:3: vms.vm: the key 'image' is missing"),
    ("  vm:", "6:6: vms.vm: has no value"),
    ("  vm: x", "6:7: vms.vm: must be a mapping (lines of 'key: value'), not one value"),
    ("  vm: [x]", "6:7: vms.vm: must be a mapping (lines of 'key: value'), not a list"),
    ("  vm: {image: a:b, memroy: 1G}",
     "6:20: vms.vm: unknown key 'memroy'; did you mean 'memory'?"),
    ("  vm: {image: a:b, Disks: []}", "6:20: vms.vm: unknown key 'Disks'; did you mean 'disks'?"),
    ("  vm: {image: a:b, zzzzzz: 1}", "6:20: vms.vm: unknown key 'zzzzzz'; known: image, cpus, "),
    ("  vm: {image: a:b, cpus: 0}", "6:26: vms.vm.cpus: must be a whole number from 1 to 512, not"),
    ("  vm: {image: a:b, cpus: 513}", "6:26: vms.vm.cpus: must be a whole number from 1 to 512"),
    ("  vm: {image: a:b, cpus: 1e2}", "6:26: vms.vm.cpus: must be a whole number"),
    ("  vm: {image: a:b, cpus: 0o7}", "6:26: vms.vm.cpus: must be a whole number"),
    ("  vm: {image: a:b, cpus: 010}", "6:26: vms.vm.cpus: must be a whole number"),
    ("  vm: {image: a:b, cpus: 2.0}", "6:26: vms.vm.cpus: must be a whole number"),
    ("  vm: {image: a:b, cpus: '2'}",
     "6:26: vms.vm.cpus: must be a whole number from 1 to 512, wit"),
    (f"  vm: {{image: a:b, cpus: {'9' * 5000}}}", "6:26: vms.vm.cpus: must be a whole number"),
    ("  vm: {image: a:b, memory: -1}", "6:28: vms.vm.memory: '-1' is no size: a size is a number"),
    ("  vm: {image: a:b, memory: 1e99}", "6:28: vms.vm.memory: '1e99' is no size"),
    ("  vm: {image: a:b, memory: 8MiB}", "6:28: vms.vm.memory: must be a size from 16 MiB to"),
    ("  vm: {image: a:b, memory: 17TiB}", "6:28: vms.vm.memory: must be a size from 16 MiB to"),
    ("  vm: {image: a:b, memory: 2}", "6:28: vms.vm.memory: must be a size from 16 MiB to"),
    ("  vm: {image: a:b, memory: }", "6:28: vms.vm.memory: has no value"),
    ("  vm: {image: a:b, disk: 65TiB}", "6:26: vms.vm.disk: must be a size from 1 MiB to"),
    ("  vm: {image: a:b, user: -x}", "6:26: vms.vm.user: '-x' is no user name"),
    ("  vm: {image: a:b, user: $(id)}", "6:26: vms.vm.user: '$(id)' is no user name"),
    ("  vm: {image: a:b, networks: lan}", "6:30: vms.vm.networks: must be a list"),
    ("  vm: {image: a:b, networks: {}}", "6:30: vms.vm.networks: must be a list"),
    ("  vm: {image: a:b, networks: [lam]}",
     "6:31: vms.vm.networks[0]: unknown network 'lam'; did you mean 'lan'?"),
    ("  vm: {image: a:b, networks: [wide]}",
     "6:31: vms.vm.networks[0]: unknown network 'wide'; known: lan"),
    ("  vm: {image: a:b, networks: [lan, lan]}",
     "6:36: vms.vm.networks[1]: the network 'lan' stands twice, see vms.vm.networks[0] (line 6)"),
    ("  vm: {image: a:b, networks: [[lan]]}", "6:31: vms.vm.networks[0]: must be a mapping"),
    ("  vm: {image: a:b, networks: [{ip: 10.77.1.2}]}",
     "6:31: vms.vm.networks[0]: the key 'name' is missing"),
    ("  vm: {image: a:b, networks: [{name: lan, ipp: 10.77.1.2}]}",
     "6:43: vms.vm.networks[0]: unknown key 'ipp'; did you mean 'ip'?"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.1.0}]}",
     "6:47: vms.vm.networks[0].ip: 10.77.1.0 is the network address of 10.77.1.0/24"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.1.1}]}",
     "6:47: vms.vm.networks[0].ip: 10.77.1.1 is the host's own address on 10.77.1.0/24"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.1.255}]}",
     "6:47: vms.vm.networks[0].ip: 10.77.1.255 is the broadcast address of 10.77.1.0/24"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.2.2}]}",
     "6:47: vms.vm.networks[0].ip: 10.77.2.2 is not in 10.77.1.0/24"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.01.2}]}",
     "6:47: vms.vm.networks[0].ip: '10.77.01.2' is no IPv4 address"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 'fe80::1'}]}",
     "6:47: vms.vm.networks[0].ip: 'fe80::1' is no IPv4 address"),
    ("  vm: {image: a:b, networks: [{name: lan, ip: 10.77.1.9}]}\n"
     "  vx: {image: a:b, networks: [{name: lan, ip: 10.77.1.9}]}",
     "7:47: vms.vx.networks[0].ip: 10.77.1.9 is taken, see vms.vm.networks[0].ip (line 6)"),
    ("  vm: {image: a:b, networks: [{name: lan, mac: 52:54:00:12:34:5A}]}\n"
     "  vx: {image: a:b, networks: [{name: lan, mac: 52:54:00:12:34:5a}]}",
     "7:48: vms.vx.networks[0].mac: 52:54:00:12:34:5a is taken, see vms.vm.networks[0].mac (li"),
    ("  vm: {image: a:b, networks: [{name: lan, mac: 01:00:5e:00:00:01}]}",
     "6:48: vms.vm.networks[0].mac: 01:00:5e:00:00:01 is a multicast address"),
    ("  vm: {image: a:b, networks: [{name: lan, mac: fe:54:00:12:34:56}]}",
     "6:48: vms.vm.networks[0].mac: fe:54:00:12:34:56 is reserved"),
    ("  vm: {image: a:b, networks: [{name: lan, mac: 525400123456}]}",
     "6:48: vms.vm.networks[0].mac: '525400123456' is no MAC address"),
    ("  vm: {image: a:b, disks: [{name: data}]}", "6:28: vms.vm.disks[0]: the key 'size' is miss"),
    ("  vm: {image: a:b, disks: [{size: 1G}]}", "6:28: vms.vm.disks[0]: the key 'name' is missing"),
    ("  vm: {image: a:b, disks: [{name: d, size: 1G}, {name: d, size: 2G}]}",
     "6:56: vms.vm.disks[1].name: the disk 'd' stands twice, see vms.vm.disks[0].name (line 6)"),
    ("  vm: {image: a:b, disks: [{name: d, size: 1k}]}",
     "6:44: vms.vm.disks[0].size: must be a si"),
    ("  vm: {image: a:b, disks: [{name: d, size: 65T}]}",
     "6:44: vms.vm.disks[0].size: must be a s"),
    ("  vm: {image: a:b, disks: [{name: d, size: 1G, keep: on}]}",
     "6:54: vms.vm.disks[0].keep: must be true or false, not 'on'"),
    ("  vm: {image: a:b, disks: [{name: d, size: 1G, keep: 'true'}]}",
     "6:54: vms.vm.disks[0].keep: must be true or false"),
    (f"  vm: {{image: a:b, disks: [{{name: {'d' * 21}, size: 1G}}]}}",
     "6:35: vms.vm.disks[0].name: a disk name is 20 characters at most"),
    ("  vm: {image: a:b, after: [dbs]}",
     "6:28: vms.vm.after[0]: unknown VM 'dbs'; did you mean 'db'?"),
    ("  vm: {image: a:b, after: [vm]}", "6:28: vms.vm.after[0]: a VM cannot come after itself"),
    ("  vm: {image: a:b, after: [db, db]}", "6:32: vms.vm.after[1]: the VM 'db' stands twice, see"),
    ("  vm: {image: a:b, after: db}", "6:27: vms.vm.after: must be a list"),
    ("  v1: {image: a:b, after: [v2]}\n  v2: {image: a:b, after: [v3]}\n"
     "  v3: {image: a:b, after: [v1]}",
     "8:28: vms.v3.after[0]: the order is a circle: v1 after v2 after v3 after v1"),
    ("  vm: {image: a:b, ready: {}}",
     "6:27: vms.vm.ready: needs one of ssh: true, tcp: PORT, agent"),
    ("  vm: {image: a:b, ready: {timeout: 5}}", "6:27: vms.vm.ready: needs one of ssh: true"),
    ("  vm: {image: a:b, ready: {ssh: true, tcp: 5}}",
     "6:39: vms.vm.ready: only one of ssh and tcp can be waited for"),
    ("  vm: {image: a:b, ready: {ssh: false}}",
     "6:33: vms.vm.ready.ssh: must be true, not 'false'"),
    ("  vm: {image: a:b, ready: {tcp: 0}}",
     "6:33: vms.vm.ready.tcp: must be a port from 1 to 65535"),
    ("  vm: {image: a:b, ready: {tpc: 80}}",
     "6:28: vms.vm.ready: unknown key 'tpc'; did you mean 'tcp'?"),
    ("  vm: {image: a:b, ready: {ssh: true, timeout: 0}}",
     "6:48: vms.vm.ready.timeout: must be 1 to 86400 seconds, or such as 5m, not '0'"),
    ("  vm: {image: a:b, ready: {ssh: true, timeout: 25h}}", "6:48: vms.vm.ready.timeout: must be"),
    ("  vm: {image: a:b, ready: ssh}", "6:27: vms.vm.ready: must be a mapping"),
    ("  vm: {image: a:b, ports: [80]}",
     "6:28: vms.vm.ports[0]: must be HOST:GUEST, such as 8080:80"),
    ("  vm: {image: a:b, ports: [80:80]}",
     "6:28: vms.vm.ports[0]: the port of the host must be 1024"),
    ("  vm: {image: a:b, ports: [8080:0]}",
     "6:28: vms.vm.ports[0]: the port of the guest must be 1"),
    ("  vm: {image: a:b, ports: [65536:80]}",
     "6:28: vms.vm.ports[0]: the port of the host must be"),
    ("  vm: {image: a:b, ports: [8080:80]}\n  vx: {image: a:b, ports: [8080:443]}",
     "7:28: vms.vx.ports[0]: port 8080 of the host is taken, see vms.vm.ports[0] (line 6)"),
]  # fmt: skip


@pytest.mark.parametrize(("vms", "expected"), VM_FAULTS)
def test_faults_of_vms(vms: str, expected: str) -> None:
    found = faults(lab_of(vms + "\n"))
    assert len(found) == 1, found
    assert found[0].startswith(expected)


# Each: lines of networks (they begin at line 4), and what is said.
NETWORK_FAULTS = [
    ("  x: {}", "4:3: networks.x: the key 'cidr' is missing"),
    ("  x: {cidr: 10.77.1.128/25}",
     "4:13: networks.x.cidr: 10.77.1.128/25 overlaps the network 'lan', 10.77.1.0/24"),
    ("  x: {cidr: 10.0.0.0/8}", "4:13: networks.x.cidr: 10.0.0.0/8 overlaps the network 'lan'"),
    ("  x: {cidr: 10.9.1.5/24}",
     "4:13: networks.x.cidr: 10.9.1.5/24 has host bits set; did you mean 10.9.1.0/24?"),
    ("  x: {cidr: 10.9.1.0}", "4:13: networks.x.cidr: '10.9.1.0' is no IPv4 network"),
    ("  x: {cidr: 10.9.1.0/255.255.255.0}",
     "4:13: networks.x.cidr: '10.9.1.0/255.255.255.0' is no"),
    ("  x: {cidr: 10.9.1.0/30}", "4:13: networks.x.cidr: must be a /8 to a /29, not a /30"),
    ("  x: {cidr: 0.0.0.0/0}", "4:13: networks.x.cidr: must be a /8 to a /29, not a /0"),
    ("  x: {cidr: 10.9.1.0/33}", "4:13: networks.x.cidr: '10.9.1.0/33' is no IPv4 network"),
    ("  x: {cidr: 10.9.1.256/24}", "4:13: networks.x.cidr: '10.9.1.256/24' is no IPv4 network"),
    ("  x: {cidr: 'fd00::/64'}", "4:13: networks.x.cidr: 'fd00::/64' is no IPv4 network"),
    ("  x: {cidr: 127.0.1.0/24}",
     "4:13: networks.x.cidr: 127.0.1.0/24 overlaps 127.0.0.0/8, which"),
    ("  x: {cidr: 169.254.1.0/24}",
     "4:13: networks.x.cidr: 169.254.1.0/24 overlaps 169.254.0.0/16"),
    ("  x: {cidr: 230.0.0.0/24}", "4:13: networks.x.cidr: 230.0.0.0/24 overlaps 224.0.0.0/4"),
    ("  x: {cidr: 250.0.0.0/24}", "4:13: networks.x.cidr: 250.0.0.0/24 overlaps 240.0.0.0/4"),
    ("  x: {cidr: 0.1.0.0/16}", "4:13: networks.x.cidr: 0.1.0.0/16 overlaps 0.0.0.0/8"),
    ("  x: {cidr: 10.9.1.0/24, mode: nta}",
     "4:32: networks.x.mode: must be one of nat, isolated, not 'nta'; did you mean 'nat'?"),
    ("  x: {cidr: 10.9.1.0/24, cdir: x}",
     "4:26: networks.x: unknown key 'cdir'; did you mean 'cidr'?"),
    ("  Lan: {cidr: 10.9.1.0/24}", "4:3: networks.Lan: 'Lan' is no network name"),  # case collision
    ("  lan: {cidr: 10.9.1.0/24}",
     "4:3: networks: the key 'lan' stands twice: first at line 3, again at line 4"),
]  # fmt: skip


@pytest.mark.parametrize(("networks", "expected"), NETWORK_FAULTS)
def test_faults_of_networks(networks: str, expected: str) -> None:
    found = faults(lab_of(networks=networks + "\n"))
    assert len(found) == 1, found
    assert found[0].startswith(expected)


TOP_FAULTS = [
    ("", "1:1: the key 'name' is missing"),
    ("# nothing\n", "1:1: the key 'name' is missing"),
    ("x", "1:1: must be a mapping (lines of 'key: value'), not one value"),
    ("- a\n", "1:1: must be a mapping (lines of 'key: value'), not a list"),
    ("name: a\n", "1:1: the key 'vms' is missing"),
    ("name: a\nvms: {}\n", "2:6: vms: needs at least one entry"),
    ("name: a\nvms:\n", "2:5: vms: has no value"),
    ("name: a\nvms: [b]\n", "2:6: vms: must be a mapping"),
    ("name:\nvms: {b: {image: c:d}}\n", "1:6: name: has no value"),
    ("name: [a]\nvms: {b: {image: c:d}}\n", "1:7: name: must be one value, not a list"),
    ("name: 1e3\nvms: {b: {image: c:d}}\n", "1:7: name: '1e3' is no lab name"),
    ("name: a\nnane: b\nvms: {b: {image: c:d}}\n", "2:1: unknown key 'nane'; did you mean 'name'?"),
    ("name: a\ndefaults: {cpu: 1}\nvms: {b: {image: c:d}}\n",
     "2:12: defaults: unknown key 'cpu'; did you mean 'cpus'?"),
    ("name: a\ndefaults: {image: c:d}\nvms: {b: {image: c:d}}\n",
     "2:12: defaults: unknown key 'im"),
    ("name: a\ndefaults: {networks: [lan]}\nvms: {b: {image: c:d}}\n",
     "2:23: defaults.networks[0]: unknown network 'lan'"),
    ("name: a\ndefaults: {ready: {}}\nvms: {b: {image: c:d}}\n", "2:19: defaults.ready: needs one"),
    ('name: a\ndescription: "a\\0"\nvms: {b: {image: c:d}}\n',
     "2:14: description: the character U+0000 is not allowed"),
    ("name: a\nvms: {b: {image: *c}}\n", "2:18: vms.b.image: *c refers to nothing above it"),
    ("name: a\nvms: &v {b: *v}\n", "2:13: vms.b: *v refers to what it is part of"),
    ("name: a\nvms: {b: {image: !!python/object:os.system c:d}}\n",
     "2:18: vms.b.image: tags are not allowed"),
    ("name: a\nvms: {b: {image: c:d, image: c:e}}\n",
     "2:23: vms.b: the key 'image' stands twice: first at line 2, again at line 2"),
    ("name: a\nvms: [" + "[" * 10_000, "2:"),
    ("name: a\nvms: {b: {image: c:d}\n", "3:1: no valid YAML: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TOP_FAULTS)
def test_faults_of_the_whole(text: str, expected: str) -> None:
    found = faults(text)
    assert found
    assert found[0].startswith(expected)


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name != "a:b"])  # a reference
def test_bad_names_everywhere(name: str) -> None:
    quoted = '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in name) + '"'
    places = {
        f"name: {quoted}\nvms: {{b: {{image: c:d}}}}\n": (1, 7),
        f"name: a\nvms: {{{quoted}: {{image: c:d}}}}\n": (2, 7),
        f"name: a\nnetworks: {{{quoted}: {{cidr: 10.1.0.0/24}}}}\n"
        "vms: {b: {image: c:d}}\n": (2, 12),
        f"name: a\nvms: {{b: {{image: c:d, disks: [{{name: {quoted}, size: 1G}}]}}}}\n": (2, 38),
        f"name: a\nvms: {{b: {{image: c:d, after: [{quoted}]}}}}\n": (2, 31),
        f"name: a\nvms: {{b: {{image: c:d, networks: [{quoted}]}}}}\n": (2, 34),
        f"name: a\nvms: {{b: {{image: {quoted}, cpus: 2}}}}\n": (2, 18),
    }  # fmt: skip
    for text, (line, column) in places.items():
        found = faults(text)
        assert len(found) == 1, found
        assert found[0].startswith(f"{line}:{column}: "), found
        assert found[0].isprintable()
        assert len(found[0]) < 1000


def test_everything_in_one_go() -> None:
    text = """\
name: Big
networks:
  lan: {cidr: 10.77.1.0/24}
  lan2: {cidr: 10.77.0.0/16}
vms:
  a:
    imag: shop:v1
    networks: [lam, {name: lan, ip: 10.77.1.1}]
  a: {image: x:y}
  b:
    image: shop
    memory: 1e99
    after: [a, c]
    ports: [8080:80, 8080:81]
  bad name: {image: *x}
"""
    places = [tuple(map(int, row.split(":")[:2])) for row in faults(text)]
    assert places == [
        (1, 7), (4, 16), (6, 3), (7, 5), (8, 16), (8, 37), (9, 3), (11, 12), (12, 13), (13, 16),
        (14, 22), (15, 3), (15, 21),
    ]  # fmt: skip


def test_a_network_with_more_vms_than_addresses() -> None:
    vms = "".join(f"  v{n}: {{image: a:b, networks: [tiny]}}\n" for n in range(6))
    tiny = "  tiny: {cidr: 10.9.0.0/29}\n"
    assert faults(lab_of(vms, tiny)) == [
        "4:16: networks.tiny.cidr: 10.9.0.0/29 has 5 addresses for 6 VMs"
    ]
    vms = "".join(f"  v{n}: {{image: a:b, networks: [tiny]}}\n" for n in range(5))
    assert faults(lab_of(vms, tiny)) == []
    vms = "".join(f"  v{n}: {{image: a:b}}\n" for n in range(5))  # and db
    assert (
        "has 5 addresses for 6 VMs"
        in faults(lab_of(vms, tiny, head="defaults: {networks: [tiny]}\n"))[0]
    )


def test_limits_of_numbers() -> None:
    def vms(count: int) -> str:
        return "name: a\nvms:\n" + "".join(f"  v{n}: {{image: a:b}}\n" for n in range(count))

    assert faults(vms(1000)) == []
    assert faults(vms(1001)) == ["3:3: vms: has more than 1000 entries"]
    networks = "".join(f"  n{n}: {{cidr: 10.9.{n}.0/24}}\n" for n in range(64))
    assert faults(lab_of(networks=networks)) == ["3:3: networks: has more than 64 entries"]
    ports = ", ".join(f"{2000 + n}:80" for n in range(65))
    assert faults(lab_of(f"  vm: {{image: a:b, ports: [{ports}]}}\n")) == [
        "6:27: vms.vm.ports: has more than 64 entries"
    ]


def test_a_long_chain_and_a_long_circle() -> None:
    chain = "name: a\nvms:\n  v0: {image: a:b}\n" + "".join(
        f"  v{n}: {{image: a:b, after: [v{n - 1}]}}\n" for n in range(1, 1000)
    )
    assert faults(chain) == []
    found = faults(chain.replace("v0: {image: a:b}", "v0: {image: a:b, after: [v999]}"))
    assert len(found) == 1
    assert "the order is a circle: v0 after v999 after v998" in found[0]
    assert len(found[0]) < 300


def big(vms: int, networks: int = 8) -> str:
    text = "name: big\nnetworks:\n"
    text += "".join(f"  n{n}: {{cidr: 10.{n}.0.0/16}}\n" for n in range(networks)) + "vms:\n"
    for n in range(vms):
        text += (
            f"  vm{n}:\n    image: shop:v{n % 5}\n    cpus: 2\n    memory: 2GiB\n"
            f"    networks: [{{name: n{n % networks}, ip: 10.{n % networks}.{1 + n // 200}."
            f"{n % 200 + 10}}}, n{(n + 1) % networks}]\n"
            f"    disks: [{{name: data, size: 5GiB, keep: true}}]\n"
            f"    after: [{f'vm{n - 1}' if n else ''}]\n    ready: {{ssh: true, timeout: 5m}}\n"
            f'    ports: ["{2000 + n}:22"]\n'
        )
    return text


def calls(vms: int) -> int:
    """How many calls reading a lab of so many VMs takes: work, which no busy machine changes."""
    text, count = big(vms), 0

    def note(_frame: object, event: str, _what: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        found = schema.parse_lab(text, "f")
    finally:
        sys.setprofile(before)
    assert len(found.vms) == vms
    return count


def test_a_lab_four_times_as_large_is_four_times_the_work() -> None:
    # Seconds are bench/plan.py's affair.
    calls(2)  # what is made once
    small, large = calls(200), calls(800)
    assert small > 200
    assert large < 4.1 * small


def hostile() -> dict[str, str]:
    """Files within all limits that would be slow to one who is careless."""
    everyone = ", ".join(f"v{n}" for n in range(250))
    return {
        "dense order": "name: a\nvms:\n"
        + "".join(f"  v{n}: {{image: a:b, after: [{everyone}]}}\n" for n in range(250)),
        "unknown VMs": lab_of(
            "".join(f"  v{n}: {{image: a:b}}\n" for n in range(900))
            + f"  last: {{image: a:b, after: [{', '.join(f'x{n}' for n in range(900))}]}}\n"
        ),
        "unknown keys": "name: a\n" + "".join(f"x{n}: 1\n" for n in range(45_000)),
        "one VM by alias": "name: a\nvms:\n  v: &v {image: x, "
        + ", ".join(f"k{n}: 1" for n in range(90))
        + "}\n"
        + "".join(f"  v{n}: *v\n" for n in range(500)),
        "long key": f"name: a\nvms:\n  ? {'y' * 500_000}\n  : {{"
        + ", ".join(f"k{n}: 1" for n in range(20_000))
        + "}\n",
        "longest keys": "name: a\nvms:\n"
        + "".join(f"  {n:04}{'y' * 1000}: {{x: 1, y: 2, z: 3}}\n" for n in range(900)),
    }


@pytest.mark.parametrize("text", hostile().values(), ids=hostile())
def test_hostile_files_are_refused_in_bounded_time(text: str) -> None:
    begin = time.process_time()
    found = faults(text)
    assert 0 < len(found) <= 100
    assert all(len(row) < 1000 for row in found)
    assert time.process_time() - begin < 15


# --- files ------------------------------------------------------------------------------


def test_load_a_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FULL)
    assert schema.load_lab(file) == schema.parse_lab(FULL, "x")
    file.write_text("name: a\nvms: {b: {image: c}}\n")
    with pytest.raises(Problems) as caught:
        schema.load_lab(file)
    assert caught.value.problems[0].startswith(f"{file}:2:18: vms.b.image: ")
    assert str(caught.value).endswith("x.yaml is no valid lab file (1 fault)")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no lab file"):
        schema.load_lab(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a directory"):
        schema.load_lab(tmp_path)


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    lab = schema.load_lab(path)
    assert lab.name == path.stem
    assert path.read_text().startswith("# ")


def test_there_are_examples() -> None:
    assert {"customer-a", "bootc"} <= {path.stem for path in LABS}


# --- JSON Schema ------------------------------------------------------------------------

SCHEMA: dict[str, Any] = schema.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "null" not in str(SCHEMA)
    assert "None" not in str(SCHEMA)


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_the_schema_takes_the_examples(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"vm": {}}, {"vms": {}}, {"vms": {"B": {"image": "c:d"}}}, {"name": "A"}, {"name": None},
        {"vms": {"b": {"image": "c"}}}, {"vms": {"b": {"image": "c:d", "cpus": "2"}}},
        {"vms": {"b": {"image": "c:d", "memory": "lots"}}},
        {"vms": {"b": {"image": "c:d", "ready": {}}}},
        {"vms": {"b": {"image": "c:d", "ready": {"ssh": True, "tcp": 1}}}},
        {"vms": {"b": {"image": "c:d", "ready": {"ssh": False}}}},
        {"vms": {"b": {"image": "c:d", "networks": ["L"]}}},
        {"vms": {"b": {"image": "c:d", "networks": [{"ip": "10.0.0.2"}]}}},
        {"networks": {"lan": {"cidr": "10.0.0.0"}}}, {"networks": {"lan": {}}},
    ],
)  # fmt: skip
def test_the_schema_refuses(change: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "a", "vms": {"b": {"image": "c:d"}}}
    assert VALIDATOR.is_valid(good)
    assert not VALIDATOR.is_valid(good | change)


def test_the_schema_takes_both_forms_of_networks() -> None:
    networks = ["lan", {"name": "lan"}, {"name": "lan", "ip": "10.0.0.2", "mac": "52:54:00:0:0:1"}]
    lab = {"name": "a", "vms": {"b": {"image": "c:d", "networks": networks[:2]}}}
    VALIDATOR.validate(lab)
    lab["vms"]["b"]["networks"] = networks  # type: ignore[index]
    assert not VALIDATOR.is_valid(lab)  # that is no MAC address


def keys_of(node: object) -> set[str]:
    """Every key that a JSON Schema knows."""
    found: set[str] = set()
    if isinstance(node, dict):
        properties = node.get("properties")
        found |= set(properties) if isinstance(properties, dict) else set()
        for value in node.values():
            found |= keys_of(value)
    elif isinstance(node, list):
        for value in node:
            found |= keys_of(value)
    return found


def test_the_manual_names_every_key() -> None:
    manual = (ROOT / "docs/lab-file.md").read_text()
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", manual, re.MULTILINE))
    assert rows == keys_of(SCHEMA)


def test_the_examples_of_the_manual_are_valid() -> None:
    manual = (ROOT / "docs/lab-file.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", manual, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        assert schema.parse_lab(example, "docs/lab-file.md").vms


# --- properties -------------------------------------------------------------------------

KEYS = [*sorted(keys_of(SCHEMA)), "x", "a.b", "<<", "nmae"]
LEAVES = ["a", "lan", "shop:v1", "10.77.1.0/24", "10.77.1.5", "true", "8080:80", "2GiB", "-1", "''",
          "1e99", "on", "&a x", "*a", "!x y", "52:54:00:12:34:56", ""]  # fmt: skip


def flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)


TREES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.text(), TREES.map(flow), st.dictionaries(st.sampled_from(KEYS), TREES).map(flow))
)
def test_any_text_is_a_lab_or_a_message(text: str) -> None:
    try:
        lab = schema.parse_lab(text, "f.yaml")
    except PoclabError as error:
        rows = error.lines()
    else:
        rows = []
        assert lab.vms
    assert all(row.isprintable() and len(row) < 2000 for row in rows), rows


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_broken_character_never_breaks_the_reader(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(FULL) - 1))
    new = data.draw(st.one_of(st.characters(), st.sampled_from("[]{}:,&*!-'\"\n\t ")))
    try:
        lab = schema.parse_lab(FULL[:at] + new + FULL[at + 1 :], "f.yaml")
    except PoclabError as error:
        places = [re.match(r"f\.yaml:\d+:\d+: ", row) for row in error.lines()[:-1]]
    else:
        places = []
        assert lab.name
    assert all(places)
