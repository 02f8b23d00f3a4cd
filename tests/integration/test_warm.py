"""Warm resets of real guests: what comes back, what does not, and what is never put together."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

from poclab.guest import probe
from poclab.store import warm_states
from tests.support import hosts, labs, shop
from tests.support.hosts import Completed, Host

# Two disks, UEFI with variables, a TPM, two networks and the user network of a session.
FILE = """\
name: acme
networks:
  lan: {{mode: nat, cidr: 10.77.1.0/24}}
  back: {{mode: isolated, cidr: 10.77.2.0/24}}
defaults: {{cpus: 1, memory: {memory}, ready: {{ssh: true, timeout: 180}}, warm: true}}
vms:
  web:
    image: shop:v1
    networks: [lan, back]
    disks: [{{name: data, size: 64MiB}}]
    tpm: true
"""
WEB = "acme/web"


def up(host: Host, memory: str = "256MiB") -> Completed:
    return host.poclab("up", str(host.write("acme.yaml", FILE.format(memory=memory))), "--yes")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        shop.give(found, ("v1", "v2"))
        assert "web: its memory is kept" in up(found).stderr
        yield found
        found.poclab("down", "acme", "--yes")
        assert [name for name in labs.look(found)["files"] if ".acme." in name] == []


def states(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.poclab("warm", "ls", "-o", "json").stdout)
    return found


def generation(host: Host) -> str:
    return fromstring(host.virsh("dumpxml", "acme.web")).findtext("genid", "")


def boot(host: Host) -> str:
    """What is another one after every boot: where the kernel put the stack of process 1."""
    return shop.ssh(host, WEB, "cut -d' ' -f28 /proc/1/stat")


def clock_is_right(host: Host) -> bool:
    """Whether the guest's clock shows a time between asking and the answer, give or take 2 s."""
    asked = time.time()
    shown = float(shop.ssh(host, WEB, "date -u +%s"))
    return asked - 3 <= shown <= time.time() + 2  # `date` cuts off up to a second


def running(host: Host) -> str:
    (row,) = json.loads(host.poclab("status", "acme", "-o", "json").stdout)
    return str(row["version"])


def mark_disks(host: Host, text: str) -> None:
    """Have the guest write to both disks, and to its memory."""
    data = "/dev/vdb"
    command = f"echo {text} >/root/mark; echo {text} >/run/mark; echo {text} >{data}; sync"
    shop.ssh(host, WEB, command)


def marks(host: Host) -> str:
    command = "cat /root/mark /run/mark 2>/dev/null; head -c 4 /dev/vdb | tr -d '\\0'"
    return shop.ssh(host, WEB, command)


def open_to_others(eyes: Host) -> str:
    """What in the pool somebody else can read or write, seen by who may look into it."""
    directory = labs.look(eyes)["directory"]
    shut = ("(", "-perm", "/007", "-o", "-perm", "/070", "!", "-name", "base.*", ")")
    return eyes.run("find", directory, "-type", "f", *shut, "-printf", "%f %m\n").stdout


def test_a_reset_brings_the_guest_back_as_it_was_when_it_was_ready(host: Host) -> None:
    first, ids = boot(host), [generation(host)]
    addresses = shop.ssh(host, WEB, "ip -4 -o addr show")
    (before,) = states(host)
    assert (before["version"], before["in_use"]) == ("shop:v1", True)
    for text in ("one", "two"):
        mark_disks(host, text)
        assert text in marks(host)
        done = host.poclab("reset", WEB)
        assert "from its warm state" in done.stderr
        assert marks(host) == ""
        assert boot(host) == first
        assert shop.ssh(host, WEB, "ip -4 -o addr show") == addresses
        ids.append(generation(host))
    assert len(set(ids)) == 3
    assert states(host) == [before]
    assert open_to_others(host) == ""
    assert labs.leftovers(host) == []


def logins(done: Completed) -> list[str]:
    """What a command with -v ran over SSH."""
    return [line for line in done.stderr.splitlines() if "run: ssh " in line]


@pytest.mark.parametrize("by", ["the guest", "a login"])
def test_the_clock_is_right(host: Host, by: str) -> None:
    manifest = next(Path(labs.look(host)["directory"]).glob("warm.acme.web.*.json"))
    before = manifest.read_bytes()
    state = warm_states.decode(before)
    assert state.watched
    if by == "a login":
        manifest.write_bytes(warm_states.encode(replace(state, watched=False)))
    try:
        time.sleep(5)
        done = host.poclab("-v", "reset", WEB)
    finally:
        manifest.write_bytes(before)
    assert "from its warm state" in done.stderr
    assert "its clock" not in done.stderr
    assert ["hwclock" in line for line in logins(done)] == ([] if by == "the guest" else [True])
    probe.wait_until(lambda: clock_is_right(host), 10)
    kept = time.mktime(time.strptime(state.created, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert time.time() - kept > 5  # it would be that late
    probe.wait_until(lambda: shop.ssh(host, WEB, "pidof sleep || true") == "", 10)  # it ended


def test_each_version_has_a_state_and_a_system_disk_of_its_own(host: Host) -> None:
    assert "its memory is kept" in host.poclab("reset", WEB, "--to", "v2").stderr
    second = boot(host)
    assert {row["version"] for row in states(host)} == {"shop:v1", "shop:v2"}
    for tag in ("v1", "v2", "v1"):
        assert "from its warm state" in host.poclab("reset", WEB, "--to", tag).stderr
        assert running(host) == f"shop:{tag}"
        assert (boot(host) == second) == (tag == "v2")


def test_rollback_goes_to_what_ran_before_and_history_says_how(host: Host) -> None:
    before = running(host)
    other = {"shop:v1": "shop:v2", "shop:v2": "shop:v1"}[before]
    for version in (other, before):
        assert "from its warm state" in host.poclab("rollback", WEB).stderr
        assert running(host) == version
    rows = json.loads(host.poclab("history", WEB, "-o", "json").stdout)
    assert [(row["action"], row["version"], row["start"]) for row in rows[-2:]] == [
        ("rollback", other, "warm"),
        ("rollback", before, "warm"),
    ]
    assert (rows[0]["action"], rows[0]["start"]) == ("create", "cold")
    assert 0 < rows[-1]["seconds"] < rows[0]["seconds"]


# TPM 2.0 Library, part 3: TPM2_HierarchyChangeAuth gives the owner, who has no password, "abcd".
# What it says is kept in the TPM; once done it fails with TPM_RC_BAD_AUTH (part 2, table 17).
CHANGE = r"\200\002\0\0\0\041\0\0\001\051\100\0\0\001\0\0\0\011\100\0\0\011\0\0\0\0\0\0\004abcd"


def claim(host: Host) -> str:
    """Give the guest's TPM an owner; the response code, in hexadecimal."""
    script = f"exec 3<>/dev/tpm0; printf '{CHANGE}' >&3; dd bs=4096 count=1 <&3 2>/dev/null"
    return shop.ssh(host, WEB, f"{script} | od -An -tx1 -j6 -N4").replace(" ", "").strip()


@pytest.mark.parametrize("how", [(), ("--no-warm",)], ids=["warm", "cold"])
def test_a_reset_gives_the_vm_a_new_tpm(host: Host, how: tuple[str, ...]) -> None:
    host.poclab("reset", WEB, "--to", "v1", *how)
    assert claim(host) == "00000000"
    assert claim(host) == "000009a2"
    uuid = host.virsh("domuuid", "acme.web")
    host.poclab("reset", WEB, *how)
    assert claim(host) == "00000000"
    assert host.virsh("domuuid", "acme.web") == uuid
    assert [name for name in host.domains() if "stand-in" in name] == []


@pytest.mark.parametrize("begun", ["kept", "restored"])
def test_memory_is_not_restored_onto_disks_that_were_run_on(host: Host, begun: str) -> None:
    if begun == "kept":
        host.poclab("warm", "drop", WEB, "--to", "v1")
    done = host.poclab("reset", WEB, "--to", "v1")
    assert ("its memory is kept" in done.stderr) == (begun == "kept")
    mark_disks(host, "kept")
    first = boot(host)
    host.virsh("destroy", "acme.web")
    done = up(host)
    assert "from its warm state" not in done.stderr
    assert boot(host) != first
    assert "kept" in marks(host)


def test_another_definition_boots_and_is_kept_anew(host: Host) -> None:
    before = {row["created"] for row in states(host)}
    assert up(host, memory="320MiB").returncode == 0
    done = host.poclab("reset", WEB, "--to", "v1")
    assert "boots, its warm state is of no use: its definition changed" in done.stderr
    assert "its memory is kept" in done.stderr
    assert len(states(host)) == 2
    assert {row["created"] for row in states(host)} != before
    assert "from its warm state" in host.poclab("reset", WEB, "--to", "v1").stderr


def test_a_state_that_fails_is_a_boot_on_a_clean_disk(host: Host) -> None:
    seen = labs.look(host)
    (memory,) = [
        row
        for name in seen["files"]
        if (row := re.fullmatch(r"warm\.acme\.web\.([0-9a-f]{8})\.ram", name))
        and f"overlay.acme.web.{row[1]}.qcow2" in str(host.virsh("dumpxml", "acme.web"))
    ]
    path = f"{seen['directory']}/{memory[0]}"
    # The header and the XML hold, the memory itself is cut off.
    host.run("truncate", "-s", "1M", path)
    mark_disks(host, "old")
    done = host.poclab("reset", WEB)
    assert "boots, as its warm state fails" in done.stderr
    assert "its memory is kept" in done.stderr
    assert marks(host) == ""
    assert "from its warm state" in host.poclab("reset", WEB).stderr
    assert labs.leftovers(host) == []


def test_a_version_of_a_vm_on_a_warm_state_holds_all_of_its_disk(host: Host) -> None:
    assert "from its warm state" in host.poclab("reset", WEB).stderr
    mark_disks(host, "mine")
    first = boot(host)
    host.poclab("commit", WEB, "--as", "shop:live", "--no-quiesce")
    assert boot(host) == first
    host.poclab("commit", WEB, "--as", "shop:mine", "--shutdown", "--yes")
    assert "mine" in marks(host)
    before = [row["created"] for row in states(host)]
    done = host.poclab("reset", WEB, "--no-warm")
    assert "its memory is kept" not in done.stderr
    assert shop.ssh(host, WEB, "cat /root/mark") == "mine\n"
    assert [row["created"] for row in states(host)] == before
    assert "from its warm state" in host.poclab("reset", WEB, "--to", "v1").stderr
    host.poclab("image", "rm", "shop:mine", "shop:live")


def test_dropped_states_are_gone_and_the_vm_runs_on(host: Host) -> None:
    assert "from its warm state" in host.poclab("reset", WEB, "--to", "v1").stderr
    first, before = boot(host), states(host)
    assert host.poclab("warm", "drop", WEB, "--to", "v1").stderr == "1 warm state deleted\n"
    assert states(host) == [row for row in before if row["version"] != "shop:v1"]
    done = host.poclab("warm", "drop", "--all")
    assert re.fullmatch(f"{len(before) - 1} warm states? deleted\n", done.stderr)
    assert states(host) == []
    assert [x for x in labs.look(host)["files"] if x.startswith("warm.")] == []
    assert boot(host) == first
    assert labs.leftovers(host) == []


def test_a_kept_data_disk_and_a_warm_state_exclude_each_other(host: Host) -> None:
    text = FILE.format(memory="320MiB")
    kept = text.replace("size: 64MiB", "size: 64MiB, keep: true")
    own = kept.replace("image: shop:v1", "image: shop:v1\n    warm: true")
    done = host.poclab("validate", str(host.write("own.yaml", own)), check=False)
    assert done.returncode == 2
    assert "warm resets and a disk with keep: true exclude each other" in done.stderr
    done = host.poclab("up", str(host.write("kept.yaml", kept)), "--yes", check=False)
    assert done.returncode == 2  # the VM is still on what was a warm state
    assert "lies over that of a warm state" in done.stderr
    host.poclab("reset", WEB, "--no-warm")
    done = host.poclab("up", str(host.write("kept.yaml", kept)), "--yes")
    assert "no warm resets: the memory would know a kept data disk as it was" in done.stderr
    host.poclab("down", "acme", "--yes", "--volumes")


@pytest.mark.parametrize("place", ["root", "member"])
def test_under_a_system_daemon(module_system: tuple[Host, Host], place: str) -> None:
    root, member = module_system
    host = root if place == "root" else member
    shop.give(root, ("v1",))
    try:
        assert "its memory is kept" in up(host).stderr
        first = boot(host)
        addresses = shop.ssh(host, WEB, "ip -4 -o addr show")
        mark_disks(host, "one")
        assert "from its warm state" in host.poclab("reset", WEB).stderr
        assert (boot(host), marks(host)) == (first, "")
        assert shop.ssh(host, WEB, "ip -4 -o addr show") == addresses
        probe.wait_until(lambda: clock_is_right(host), 10)
        assert [row["in_use"] for row in states(host)] == [True]
        assert [x for x in labs.look(root)["files"] if x.endswith(".ram")]
        assert open_to_others(root) == ""
    finally:
        host.poclab("down", "acme", "--yes")
        root.poclab("image", "rm", "shop:v1")
    assert [x for x in labs.look(root)["files"] if ".acme." in x] == []
