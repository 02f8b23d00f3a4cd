"""Plan and apply in qemu:///session as an ordinary user, on guests of one boot sector."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import yaml

from poclab.model.version_volumes import base_volume
from tests.support import labs
from tests.support.hosts import Completed, Host
from tests.support.onelab import OneLab, free_port, listens, one_lab


@pytest.fixture(scope="module")
def tiny(module_session: Host) -> Host:
    """The host with versions v1 and v2 of an image."""
    for tag in ("v1", "v2"):
        labs.store(module_session, f"tiny:{tag}")
    return module_session


@pytest.fixture
def lab(tiny: Host, session_host: Host) -> Iterator[OneLab]:
    with one_lab(session_host) as made:
        yield made


# --- up and plan --------------------------------------------------------------------------


def test_up_starts_what_the_file_asks_for(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v2', memory: 48MiB, cpus: 2}")
    lab.up()
    running = lab.host.virsh("list", "--name").split()
    assert {lab.domain("a"), lab.domain("b")} <= set(running)
    info = lab.host.virsh("dominfo", lab.domain("b"))
    assert "49152 KiB" in info
    assert lab.host.virsh("vcpucount", "--maximum", "--live", lab.domain("b")).strip() == "2"


def test_a_user_with_an_odd_name_is_in_the_history_as_one_can_print_it(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.host.poclab("up", lab.path, SUDO_USER="\x1b[31mann\x01 & <b>\n")
    (row,) = json.loads(lab.host.poclab("history", f"{lab.name}/a", "-o", "json").stdout)
    assert row["by"] == "?[31mann? & <b>"


def test_a_second_up_changes_nothing_and_says_so(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB, keep: true}]}")
    lab.up()
    before = labs.look(lab.host), lab.run_id("a"), lab.host.virsh("dumpxml", lab.domain("a"))
    done = lab.up()
    assert f"{lab.name} is as its file asks for: nothing to do" in done.stderr
    after = labs.look(lab.host), lab.run_id("a"), lab.host.virsh("dumpxml", lab.domain("a"))
    assert after == before


def test_a_dry_run_gives_reasons_and_makes_nothing(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    before = lab.digests()
    done = lab.up("--dry-run", "-o", "json")
    assert json.loads(done.stdout) == [
        {
            "action": "create",
            "target": "a",
            "reason": "not there yet, from tiny:v1",
            "reboots": False,
            "discards": "",
        }
    ]
    assert lab.domain("a") not in lab.host.domains()
    assert lab.digests() == before
    files = lab.host.run("find", lab.host.env["XDG_DATA_HOME"]).stdout
    assert f"/{lab.name}" not in files


def test_plan_tells_a_script_whether_there_is_something_to_do(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    assert lab.host.poclab("plan", lab.path, "--exit-code", check=False).returncode == 3
    assert lab.host.poclab("plan", lab.path).returncode == 0
    lab.up()
    done = lab.host.poclab("plan", lab.path, "--exit-code", check=False)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr


def test_more_memory_is_planned_as_a_reboot_and_applied(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    lab.up()
    disk, a, b = lab.disks("a"), lab.run_id("a"), lab.run_id("b")
    lab.write("a: {image: 'tiny:v1', memory: 48MiB}", "b: {image: 'tiny:v1'}")
    (action,) = lab.plan()
    assert (action["action"], action["target"]) == ("change", "a")
    assert action["reason"] == "memory 32 MiB -> 48 MiB"
    assert action["reboots"] is True
    done = lab.up()
    assert "change a: memory 32 MiB -> 48 MiB [reboots]" in done.stderr
    assert "49152 KiB" in lab.host.virsh("dominfo", lab.domain("a"))
    assert lab.disks("a") == disk
    assert (lab.run_id("a") != a, lab.run_id("b")) == (True, b)
    assert lab.plan() == []


def test_a_vm_that_is_new_in_the_file_leaves_the_others_alone(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = lab.run_id("a")
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v2'}")
    assert [(row["action"], row["target"]) for row in lab.plan()] == [("create", "b")]
    lab.up()
    assert set(lab.status()) == {"a", "b"}
    assert lab.run_id("a") == before


def test_a_vm_that_left_the_file_goes_with_its_disks(lab: OneLab) -> None:
    disks = "disks: [{name: kept, size: 1MiB, keep: true}, {name: passing, size: 1MiB}]"
    lab.write("a: {image: 'tiny:v1'}", f"b: {{image: 'tiny:v1', {disks}}}")
    lab.up()
    lab.write("a: {image: 'tiny:v1'}")
    (action,) = lab.plan()
    assert (action["action"], action["target"]) == ("remove", "b")
    assert action["reason"] == "no longer in the lab file"
    assert action["discards"] == "its system disk, data disk passing"
    lab.up()
    assert lab.domain("b") not in lab.host.domains()
    assert {name for name in lab.volumes() if ".b." in name} == {f"data.{lab.name}.b.kept.qcow2"}


def test_an_image_that_changed_in_the_file_is_a_new_disk(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = lab.disks("a")
    lab.write("a: {image: 'tiny:v2'}")
    (action,) = lab.plan()
    assert action["action"] == "reset"
    assert action["reason"] == "image tiny:v1 -> tiny:v2"
    assert action["reboots"] is True
    assert action["discards"] == "its system disk"
    lab.up()
    assert lab.status()["a"]["version"] == "tiny:v2"
    assert lab.disks("a") != before
    assert lab.volumes() == set(lab.disks("a"))
    assert lab.history("a") == [("create", "tiny:v1"), ("reset", "tiny:v2")]


def test_a_version_that_is_not_there_stops_up_before_anything(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v7'}")
    done = lab.up(check=False)
    assert done.returncode == 1
    assert "tiny:v7 is not there" in done.stderr
    assert "v1, v2" in done.stderr
    assert lab.status() == {}
    assert lab.volumes() == set()


# --- disks --------------------------------------------------------------------------------


def size(host: Host, volume: str) -> int:
    path = f"{labs.look(host)['directory']}/{volume}"
    out = host.run("qemu-img", "info", "-U", "--output=json", path).stdout
    found: int = json.loads(out)["virtual-size"]
    return found


def test_a_new_data_disk_is_planned_and_attached(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB, keep: true}]}")
    (action,) = lab.plan()
    assert action["reason"] == "new data disk data"
    lab.up()
    assert lab.disks("a")[1:] == [f"data.{lab.name}.a.data.qcow2"]
    assert size(lab.host, lab.disks("a")[1]) == 1024**2


def test_a_data_disk_grows_and_keeps_its_content(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB}]}")
    lab.up()
    (volume,) = lab.disks("a")[1:]
    lab.off("a")
    labs.scribble(lab.host, volume, 0x5A)
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 3MiB}]}")
    assert "data disk data 1 MiB -> 3 MiB" in lab.plan()[0]["reason"]
    lab.up()
    assert lab.disks("a")[1:] == [volume]
    assert size(lab.host, volume) == 3 * 1024**2
    path = f"{labs.look(lab.host)['directory']}/{volume}"
    read = lab.host.run("qemu-io", "-U", "-r", "-c", "read -P 0x5a 0 64k", path).stdout
    assert "verification failed" not in read
    assert "read 65536/65536 bytes" in read


def test_a_system_disk_grows_under_a_vm_that_runs_and_keeps_its_content(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    (overlay,) = lab.disks("a")
    before = size(lab.host, overlay)
    lab.write("a: {image: 'tiny:v1', disk: 5MiB}")
    (action,) = lab.plan()
    assert (action["reason"], action["reboots"]) == ("system disk of 5 MiB", True)
    lab.up()
    assert before < size(lab.host, overlay) == 5 * 1024**2
    assert lab.disks("a") == [overlay]
    seen = lab.host.virsh("domblkinfo", lab.domain("a"), "hda").split()
    assert seen[seen.index("Capacity:") + 1] == str(5 * 1024**2)
    assert lab.plan() == []


def test_a_data_disk_is_never_made_smaller(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 3MiB}]}")
    lab.up()
    before = labs.look(lab.host)
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB}]}")
    done = lab.up(check=False)
    assert done.returncode == 2
    assert "data disk data has 3 MiB and cannot shrink to 1 MiB" in done.stderr
    assert labs.look(lab.host) == before


def test_a_kept_disk_is_not_made_smaller_after_down_either(lab: OneLab) -> None:
    line = "a: {image: 'tiny:v1', disks: [{name: data, size: %s, keep: true}]}"
    lab.write(line % "3MiB")
    lab.up()
    lab.down()
    before = lab.digests()
    lab.write(line % "1MiB")
    done = lab.up(check=False)
    assert done.returncode == 2
    assert "a: data disk data was kept from before, has 3 MiB and cannot shrink" in done.stderr
    assert lab.digests() == before
    lab.write(line % "4MiB")
    lab.up()
    assert size(lab.host, lab.disks("a")[1]) == 4 * 1024**2


def test_keep_can_be_said_later_and_taken_back_without_loss(lab: OneLab) -> None:
    def written(keep: str) -> None:
        lab.write(f"a: {{image: 'tiny:v1', disks: [{{name: data, size: 1MiB, keep: {keep}}}]}}")

    written("false")
    lab.up()
    lab.off("a")
    content = labs.scribble(lab.host, lab.disks("a")[1], 0x77)
    written("true")
    lab.up()
    assert lab.disks("a")[1] == f"data.{lab.name}.a.data.qcow2"
    assert labs.content(lab.host, lab.disks("a")[1]) == content
    written("false")
    lab.up()
    assert lab.disks("a")[1].startswith(f"scratch.{lab.name}.a.data.")
    assert labs.content(lab.host, lab.disks("a")[1]) == content
    assert lab.volumes() == set(lab.disks("a"))


def test_a_data_disk_that_left_the_file_is_named_before_it_is_lost(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB}]}")
    lab.up()
    lab.write("a: {image: 'tiny:v1'}")
    (action,) = lab.plan()
    assert action["discards"] == "data disk data"
    lab.up()
    assert lab.volumes() == set(lab.disks("a"))
    assert len(lab.disks("a")) == 1


# --- ports --------------------------------------------------------------------------------


def test_forwarded_ports_follow_the_file(lab: OneLab) -> None:
    first, second = free_port(), free_port()
    lab.write(f"a: {{image: 'tiny:v1', ports: ['{first}:80']}}")
    lab.up()
    ssh = lab.status()["a"]["address"]
    assert listens(first)
    lab.write(f"a: {{image: 'tiny:v1', ports: ['{second}:80']}}")
    (action,) = lab.plan()
    assert action["reason"].startswith("ports ")
    assert action["reboots"] is True
    lab.up()
    assert (listens(first), listens(second)) == (False, True)
    assert lab.status()["a"]["address"] == ssh


def test_every_vm_has_an_ssh_port_of_its_own_that_stays(lab: OneLab, tiny: Host) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    lab.up()
    ports = {vm: row["address"] for vm, row in lab.status().items()}
    assert len(set(ports.values())) == 2
    lab.off("a")
    with one_lab(tiny) as other:
        # The port of a VM that is off is still its own.
        other.write("c: {image: 'tiny:v1'}")
        other.up()
        assert other.status()["c"]["address"] not in ports.values()
        lab.up()
        assert {vm: row["address"] for vm, row in lab.status().items()} == ports


def test_a_port_of_another_lab_is_refused_before_anything_is_made(lab: OneLab, tiny: Host) -> None:
    port = free_port()
    lab.write(f"a: {{image: 'tiny:v1', ports: ['{port}:80']}}")
    lab.up()
    with one_lab(tiny) as other:
        other.write(f"c: {{image: 'tiny:v1', ports: ['{port}:80']}}")
        done = other.up(check=False)
        assert done.returncode == 2
        assert f"port {port} of this host is {lab.name}/a's" in done.stderr
        assert other.volumes() == set()


def robbed(lab: OneLab, times: int, guest: int = 22) -> Completed:
    """`poclab up` while another program takes a port each time the VM is about to start."""
    installation = lab.host.place.installation
    program = str(installation.checkout / "tests/support/rob.py")
    return lab.host.run(
        installation.python, program, str(times), str(guest), "up", lab.path, check=False
    )


def test_a_port_that_a_program_took_before_the_start_is_chosen_anew(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    done = robbed(lab, 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("it gets another one") == 2
    rows = lab.status()
    ports = {row["address"].partition(":")[2] for row in rows.values()}
    assert len(ports) == 2
    assert all(f"took port {port}:" not in done.stderr for port in ports)
    assert all(listens(int(port)) for port in ports)
    assert [event for event, _ in lab.history("a")] == ["create"]
    assert lab.plan() == []


def test_who_always_loses_its_port_is_told_what_to_do(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    done = robbed(lab, 3)
    assert done.returncode == 1
    assert "another program took the port: run `poclab up` again" in done.stderr
    lab.up()
    assert lab.status()["a"]["state"] == "running"


def test_a_port_of_the_lab_file_is_never_another_one(lab: OneLab) -> None:
    port = free_port()
    lab.write(f"a: {{image: 'tiny:v1', ports: ['{port}:80']}}")
    done = robbed(lab, 1, guest=80)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}-:80" in done.stderr
    assert "it gets another one" not in done.stderr
    lab.up()
    assert listens(port)


# --- what somebody did with virsh ---------------------------------------------------------


def test_up_starts_a_vm_that_was_stopped(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    disks = lab.disks("a")
    lab.off("a")
    assert lab.status()["a"]["state"] == "shut off"
    (action,) = lab.plan()
    assert (action["action"], action["reason"]) == ("start", "it is shut off")
    lab.up()
    assert lab.status()["a"]["state"] == "running"
    assert lab.disks("a") == disks


def test_up_resumes_a_vm_that_was_paused(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    before = lab.run_id("a")
    lab.host.virsh("suspend", lab.domain("a"))
    assert lab.status()["a"]["state"] == "paused"
    assert [row["action"] for row in lab.plan()] == ["resume"]
    lab.up()
    assert lab.status()["a"]["state"] == "running"
    assert lab.run_id("a") == before


def asleep(lab: OneLab, vm: str) -> bool:
    """Whether a VM has suspended itself to memory, or does within a few seconds."""
    limit = time.monotonic() + 20
    while lab.status()[vm]["state"] != "pmsuspended":
        if time.monotonic() > limit:
            return False
        time.sleep(0.2)
    return True


def test_a_vm_that_suspended_itself_is_woken_up(lab: OneLab) -> None:
    labs.store(lab.host, "sleeper:v1", labs.SLEEPER)
    lab.write("a: {image: 'sleeper:v1'}")
    lab.up()
    assert asleep(lab, "a")
    before = lab.run_id("a")
    (action,) = lab.plan()
    assert (action["action"], action["reason"]) == ("resume", "it is pmsuspended")
    lab.up()
    assert lab.status()["a"]["state"] == "running"
    assert lab.run_id("a") == before
    assert lab.plan() == []


def test_a_vm_that_suspended_itself_is_woken_up_to_be_shut_down(lab: OneLab) -> None:
    labs.store(lab.host, "sleeper:v2", labs.SLEEPER)
    lab.write("a: {image: 'sleeper:v2'}")
    lab.up()
    assert asleep(lab, "a")
    lab.write("a: {image: 'sleeper:v2', memory: 48MiB}")
    done = lab.up()
    assert "powered off" not in done.stderr
    assert "49152 KiB" in lab.host.virsh("dominfo", lab.domain("a"))


def test_up_makes_a_system_disk_again_that_was_deleted(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.off("a")
    lab.host.run("rm", f"{labs.look(lab.host)['directory']}/{lab.disks('a')[0]}")
    (action,) = lab.plan()
    assert (action["action"], action["reason"]) == ("reset", "its system disk is missing")
    lab.up()
    assert lab.status()["a"]["state"] == "running"
    assert lab.volumes() == set(lab.disks("a"))


def test_up_brings_back_a_domain_that_was_undefined(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', disks: [{name: data, size: 1MiB, keep: true}]}")
    lab.up()
    lab.off("a")
    content = labs.scribble(lab.host, lab.disks("a")[1], 0x21)
    lab.host.virsh("undefine", lab.domain("a"))
    lab.up()
    assert labs.content(lab.host, lab.disks("a")[1]) == content
    assert lab.volumes() == set(lab.disks("a"))


def content_of(lab: OneLab, *volumes: str) -> dict[str, str]:
    found = lab.digests()
    return {name: found[name] for name in volumes}


def test_disks_of_a_vm_that_was_renamed_survive_whatever_its_lab_does(lab: OneLab) -> None:
    labs.store(lab.host, "lent:v1")
    vm = "a: {image: 'lent:v1', disks: [{name: tmp, size: 1MiB}, {name: data, size: 1MiB%s}]}"
    lab.write(vm % ", keep: true")
    lab.up()
    lab.off("a")
    lab.host.virsh("domrename", lab.domain("a"), "stranger")
    disks = labs.look(lab.host)["domains"]["stranger"]["defined"]
    before = content_of(lab, *disks)
    assert len(before) == 3
    done = lab.up(check=False)
    assert done.returncode == 2
    assert "data disk data is in use by domain stranger" in done.stderr
    lab.write(vm % "")
    lab.up()
    done = lab.down("--volumes")
    assert f"data.{lab.name}.a.data.qcow2 stays: domain stranger stands on it" in done.stderr
    assert lab.volumes() == set(disks)
    done = lab.host.poclab("image", "rm", "--yes", "lent:v1", check=False)
    assert done.returncode == 1
    assert "lent:v1 is in use\nwhy: domain stranger stands on it" in done.stderr
    assert content_of(lab, *disks) == before
    assert labs.leftovers(lab.host) == []
    # By its own name it is the lab's VM again.
    lab.host.virsh("domrename", "stranger", lab.domain("a"))
    lab.write(vm % ", keep: true")
    lab.up()
    assert lab.disks("a") == disks
    lab.down("--volumes")
    lab.host.poclab("image", "rm", "--yes", "lent:v1")
    assert lab.volumes() == set()


FOREIGN = """
<domain type='qemu'><name>stranger</name><memory>32768</memory><os><type>hvm</type></os><devices>
  <disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='hda'/></disk>
  <disk type='volume'><source pool='poclab' volume='{}'/><target dev='hdb'/></disk>
</devices></domain>
"""


def test_what_a_foreign_domain_stands_on_is_no_garbage(lab: OneLab) -> None:
    host = lab.host
    raw = labs.store(host, "lent:v2")
    digest = json.loads(host.poclab("image", "ls", "lent", "-o", "json").stdout)[0]["digest"]
    base = base_volume(digest)
    directory = labs.look(host)["directory"]
    lent, stray = (f"overlay.{lab.name}.gone.0000000{n}.qcow2" for n in range(2))
    for name in (lent, stray):
        host.run("qemu-img", "create", "-q", "-f", "qcow2", f"{directory}/{name}", "1M")
    own = f"{host.scratch}/own.qcow2"
    host.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
             f"{directory}/{base}", own)  # fmt: skip
    host.virsh("define", str(host.write("stranger.xml", FOREIGN.format(own, lent))))
    assert labs.leftovers(host) == [stray]
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    assert {name for name in lab.volumes() if ".gone." in name} == {lent}
    done = host.poclab("image", "rm", "--yes", "lent:v2", check=False)
    assert "why: domain stranger stands on it" in done.stderr
    # A second name of the same disk can go: the disk stays.
    host.poclab("image", "tag", "lent:v2", "lent:again")
    host.poclab("image", "rm", "--yes", "lent:v2")
    host.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), own)
    host.virsh("undefine", "stranger")
    host.poclab("image", "rm", "--yes", "lent:again")
    lab.down()
    assert {base, lent}.isdisjoint(labs.look(host)["files"])


# --- listings -----------------------------------------------------------------------------

KEYS = [
    *("lab", "vm", "state", "version", "tag_digest", "address", "ready", "uptime"),
    *("wanted", "stored_digest", "written", "drift", "in_place"),
]


def test_status_comes_in_every_format_with_the_same_keys(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v2'}")
    lab.up()

    def status(form: str) -> str:
        return lab.host.poclab("status", lab.name, "-o", form).stdout

    rows = json.loads(status("json"))
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert [row["vm"] for row in rows] == ["a", "b"]
    versions = json.loads(lab.host.poclab("image", "ls", "tiny", "-o", "json").stdout)
    assert rows[0]["tag_digest"] == next(v["digest"] for v in versions if v["tag"] == "v1")
    assert [list(row) for row in yaml.safe_load(status("yaml"))] == [KEYS, KEYS]
    assert status("name").split() == [f"{lab.name}/a", f"{lab.name}/b"]
    heading, *lines = status("table").splitlines()
    assert heading.split() == ["LAB", "VM", "STATE", "VERSION", "DIGEST", "ADDRESS", "READY",
                               "UPTIME", "WRITTEN", "DRIFT"]  # fmt: skip
    assert [line.split()[1] for line in lines] == ["a", "b"]


def test_a_version_in_use_is_named_and_cannot_be_removed(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    rows = json.loads(lab.host.poclab("image", "ls", "-o", "json").stdout)
    promised = ["name", "tag", "digest", "created", "origin", "size", "unique", "used_by"]
    assert list(rows[0]) == [*promised, "protected"]
    assert {row["tag"]: row["used_by"] for row in rows} == {"v1": f"{lab.name}/a", "v2": ""}
    before = lab.digests()
    done = lab.host.poclab("image", "rm", "--yes", "tiny:v1", check=False)
    assert done.returncode == 1
    assert "tiny:v1 is in use" in done.stderr
    assert f"{lab.name}/a" in done.stderr
    assert lab.digests() == before


def test_a_second_tag_shares_the_disk_and_lives_on_its_own(lab: OneLab) -> None:
    bases = {name for name in lab.digests() if name.startswith("base.")}
    lab.host.poclab("image", "tag", "tiny:v1", "tiny:stable")
    assert {name for name in lab.digests() if name.startswith("base.")} == bases
    lab.write("a: {image: 'tiny:stable'}")
    lab.up()
    assert lab.status()["a"]["version"] == "tiny:stable"
    lab.down()
    lab.host.poclab("image", "rm", "--yes", "tiny:stable")
    assert {name for name in lab.digests() if name.startswith("base.")} == bases


# --- VMs that do not become ready ---------------------------------------------------------

NEVER = "ready: {ssh: true, timeout: 2}"


def test_a_vm_that_is_not_ready_stops_only_those_after_it(lab: OneLab) -> None:
    others = ("b: {image: 'tiny:v1', after: [a]}", "c: {image: 'tiny:v1'}")
    lab.write(f"a: {{image: 'tiny:v1', {NEVER}}}", *others)
    done = lab.up(check=False)
    assert done.returncode == 1
    assert f"{lab.name}/a was not ready after 2.0s" in done.stderr
    log = done.stderr.split("see its console log: ")[1].split("\n")[0]
    assert lab.host.run("test", "-f", log, check=False).returncode == 0
    assert f"{lab.name}/b was not started" in done.stderr
    assert "a is not ready" in done.stderr
    states = {vm: row["state"] for vm, row in lab.status().items()}
    assert states == {"a": "running", "b": "shut off", "c": "running"}
    a, c = lab.run_id("a"), lab.run_id("c")
    # What nobody waits for any more holds nobody up: the same command goes on.
    lab.write("a: {image: 'tiny:v1'}", *others)
    lab.up()
    assert {row["state"] for row in lab.status().values()} == {"running"}
    assert (lab.run_id("a"), lab.run_id("c")) == (a, c)


def test_vms_that_wait_for_nobody_start_together(lab: OneLab) -> None:
    lab.write(*(f"{vm}: {{image: 'tiny:v1', ready: {{ssh: true, timeout: 6}}}}" for vm in "abcd"))
    began = time.monotonic()
    done = lab.up(check=False)
    assert time.monotonic() - began < 4 * 6
    assert done.stderr.count("was not ready after 6.0s") == 4


def test_a_vm_that_does_not_start_leaves_the_others_up(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1', memory: 8TiB}", "b: {image: 'tiny:v1'}")
    done = lab.up(check=False)
    assert done.returncode == 1
    assert f"lab {lab.name} is not fully up: a" in done.stderr
    assert {vm: row["state"] for vm, row in lab.status().items()} == {
        "a": "shut off",
        "b": "running",
    }
    lab.write("a: {image: 'tiny:v1'}", "b: {image: 'tiny:v1'}")
    lab.up()
    assert lab.status()["a"]["state"] == "running"


# --- the lab's key ------------------------------------------------------------------------


def key(lab: OneLab) -> str:
    top = lab.host.env["XDG_DATA_HOME"]
    return lab.host.run("find", top, "-path", f"*/{lab.name}/id_ed25519").stdout.strip()


def test_the_private_key_stays_with_its_user(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    shown = lab.host.run("stat", "-c", "%a %U", key(lab)).stdout.split()
    assert shown == ["600", lab.host.account.name]
    public = lab.host.run("cat", f"{key(lab)}.pub").stdout.split()[1]
    private = lab.host.run("cat", key(lab)).stdout.splitlines()
    xml = lab.host.virsh("dumpxml", "--security-info", lab.domain("a"))
    assert public in xml
    assert not [line for line in private[1:-1] if line in xml]
    lab.down()
    assert key(lab) == ""


def test_without_the_key_an_up_with_nothing_to_do_makes_no_other(lab: OneLab) -> None:
    lab.write("a: {image: 'tiny:v1'}")
    lab.up()
    lab.host.run("rm", key(lab), f"{key(lab)}.pub")
    lab.up()
    assert key(lab) == ""
    done = lab.host.poclab("ssh", f"{lab.name}/a", "true", check=False)
    assert done.returncode == 1
    assert f"the key of lab {lab.name} is not on this machine" in done.stderr
    lab.reset("a")
    assert key(lab)
