"""Going back after a reset: what is kept, for how long, and that no stop loses any of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts, labs, shop
from tests.support.hosts import Completed, Host
from tests.support.labs import Vm
from tests.support.stops import told

WEB = "acme/web"


def quick(host: Host) -> Host:
    """The host without its warning that guests are emulated."""
    return replace(host, place=replace(host.place, env=host.env | {"POCLAB_ACCEL": "tcg"}))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with hosts.session() as found:
        for tag in ("v1", "v2"):
            labs.store(quick(found), f"tiny:{tag}")
        yield quick(found)


def parked(host: Host, *names: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        host.poclab("parked", "ls", *names, "-o", "json").stdout
    )
    return found


def name(row: dict[str, Any]) -> str:
    return f"{row['lab']}/{row['vm']}@{row['time']}"


def disks(host: Host, domain: str) -> list[str]:
    found: list[str] = labs.look(host)["domains"][domain]["defined"]
    return found


def of_lab(host: Host, lab: str) -> list[str]:
    return [file for file in labs.look(host)["files"] if f".{lab}." in file]


def refused(done: Completed, *words: str) -> None:
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# --- a guest that has something to lose ---------------------------------------------------

FILE = """\
name: acme
networks: {lan: {mode: nat, cidr: 10.77.1.0/24}}
defaults: {cpus: 1, memory: 256MiB, ready: {ssh: true, timeout: 180}, warm: true}
vms:
  web:
    image: shop:v1
    networks: [lan]
    disks: [{name: data, size: 16MiB}]
"""


def write_all(host: Host, text: str) -> None:
    shop.ssh(host, WEB, f"echo {text} >/root/mark; echo {text} >/dev/vdb; sync")


def read_all(host: Host) -> str:
    command = "cat /root/mark 2>/dev/null; head -c 4 /dev/vdb | tr -d '\\0'"
    return shop.ssh(host, WEB, command)


def test_the_wrong_vm_was_reset_five_minutes_before_the_demo() -> None:
    with hosts.session() as host:
        shop.give(host, ("v1", "v2"))
        host.poclab("up", str(host.write("acme.yaml", FILE)))
        write_all(host, "mine")
        before = disks(host, "acme.web")
        done = host.poclab("reset", WEB, "--keep-old")  # brought back from its warm state
        assert "from its warm state" in done.stderr
        (row,) = parked(host)
        assert f"kept until {row['expires']}: poclab restore {name(row)}" in done.stderr
        assert read_all(host) == ""

        done = host.poclab("restore", "web", "--keep-old")
        assert f"web: back on its disk of {row['time']}" in done.stderr
        assert "warm state" not in done.stderr
        assert disks(host, "acme.web") == before
        assert read_all(host) == "mine\nmine"
        (other,) = parked(host)
        assert (other["version"], other["time"] > row["time"]) == ("shop:v1", True)
        rows = json.loads(host.poclab("history", WEB, "-o", "json").stdout)
        assert (rows[-1]["action"], rows[-1]["start"]) == ("restore", "cold")

        # The warm state is as it was: no memory of that disk was kept.
        assert len(json.loads(host.poclab("warm", "ls", "-o", "json").stdout)) == 1
        assert "from its warm state" in host.poclab("reset", WEB, "--keep-old").stderr
        assert read_all(host) == ""

        # Also where the warm state that the parked disk lies over is dropped, and the lab is down.
        host.poclab("warm", "drop", "--all")
        assert "acme/web@" in host.poclab("down", "acme", "--yes").stderr
        host.poclab("up", str(host.write("acme.yaml", FILE)), "--no-warm")
        host.poclab("restore", f"web@{parked(host)[-1]['time']}")
        assert read_all(host) == "mine\nmine"
        assert labs.leftovers(host) == []
        host.poclab("down", "acme", "--yes", "--parked")
        assert of_lab(host, "acme") == []


# --- a disk that the new one did not take the place of -------------------------------------


def test_a_reset_whose_start_fails_leaves_a_way_back(host: Host) -> None:
    file = labs.lab_file(host, "fail", Vm("web", kept=False), Vm("other"))
    host.poclab("up", file)
    before = disks(host, "fail.web")
    reset = ("reset", "fail/web", "--to", "v2")
    steps = host.count_steps(("reset", "fail/web")).steps
    before = disks(host, "fail.web")
    assert parked(host) == []
    failed = host.stop_at(reset, steps.index("start") + 1, "enospc")
    assert failed.result.returncode == 1
    (row,) = parked(host)
    assert (row["version"], row["expires"]) == ("tiny:v1", "start")
    assert f"fail/web: its old disk is still there: poclab restore {name(row)}" in (
        failed.result.stderr
    )
    # Neither another command nor gc takes it; a restore goes back, with all of its disks.
    host.poclab("reset", "fail/other")
    host.poclab("gc", "--yes")
    assert set(before) <= set(of_lab(host, "fail"))
    host.poclab("restore", "fail/web")
    assert disks(host, "fail.web") == before
    assert (parked(host), labs.leftovers(host)) == ([], [])

    # The same reset again is done, and only then the disk goes; so it is after `up`.
    for last in (reset, ("up", file)):
        before = disks(host, "fail.web")
        host.stop_at(("reset", "fail/web", "--to", "v1"), steps.index("start") + 1, "enospc")
        assert len(parked(host)) == 1
        host.poclab(*last)
        assert (parked(host), labs.leftovers(host)) == ([], [])
        assert not set(before) & set(of_lab(host, "fail"))

    # A reset that was cut short as the guest still ran is undone without a stop of it.
    (run,) = [d for k, d in labs.look(host)["domains"].items() if k == "fail.web"]
    stopped = host.stop_at(reset, steps.index("power off") + 1)
    assert stopped.steps[-1] == "power off"
    rows = {row["vm"]: row for row in labs.rows(host, "fail")}
    assert rows["web"]["state"] == "running (restart pending)"
    pid = host.virsh("domid", "fail.web")
    host.poclab("restore", "fail/web")
    assert (host.virsh("domid", "fail.web"), disks(host, "fail.web")) == (pid, run["live"])
    assert (parked(host), labs.leftovers(host)) == ([], [])
    host.poclab("down", "fail", "--yes")


# --- how long, and who needs it -----------------------------------------------------------


def test_what_is_parked_is_in_use_until_its_time_is_up(host: Host) -> None:
    labs.store(host, "own:v1")
    file = labs.lab_file(host, "use", Vm("a", image="own:v1"), Vm("b", image="own:v1"))
    host.poclab("up", file)
    refused(host.poclab("reset", "a", "--expires", "1h", check=False), "--keep-old --expires")
    refused(host.poclab("reset", "a", "--keep-old", "--expires", "x", check=False), "12h or 7d")
    labs.store(host, "own:v2")
    host.poclab("reset", "use/a", "--to", "v2", "--keep-old", "--expires", "0m")
    host.poclab("rollback", "use/a", "--expires", "never", POCLAB_KEEP_OLD="1")
    host.poclab("reset", "use", "--to", "v2")
    host.poclab("reset", "use/b", "--keep-old", "--expires", "2w")
    one, two, three = parked(host, "use")
    assert [row["version"] for row in (one, two, three)] == ["own:v1", "own:v2", "own:v2"]
    assert (one["expires"], two["expires"]) == (one["time"], "never")
    assert parked(host, "b") == [three] == parked(host, "use/b")

    # Nobody but gc goes by the time; what is parked keeps its version.
    refused(host.poclab("image", "rm", "own:v1", "--yes", check=False), name(one), "parked drop")
    assert name(one) in host.poclab("image", "ls", "own").stdout
    assert labs.base(host, "own:v1") in labs.look(host)["files"]
    space = json.loads(host.poclab("df", "-o", "json").stdout)
    (line,) = [row for row in space if (row["kind"], row["name"]) == ("parked disks", "use")]
    assert line["allocated"] >= one["size"] + two["size"] + three["size"] > 0
    host.poclab("up", file, "--yes")
    assert [*parked(host)] == [one, two, three]
    assert labs.leftovers(host) == []

    shown = json.loads(host.poclab("gc", "--dry-run", "-o", "json").stdout)
    assert [(row["kind"], row["name"]) for row in shown] == [("parked disk", name(one))]
    assert shown[0]["frees"] >= one["size"]
    assert len(parked(host)) == 3
    host.poclab("gc", "--yes")
    assert parked(host) == [two, three]

    # A lab that is down keeps them; they go by name, or all with the lab.
    assert "use/a@" in host.poclab("down", "use", "--yes").stderr
    refused(host.poclab("restore", "use/a", check=False), "use/a is not there", "poclab up use")
    refused(host.poclab("parked", "drop", "use/a@1999", check=False), "there is no parked disk")
    host.poclab("parked", "drop", name(two), "--yes")
    assert parked(host) == [three]
    host.poclab("image", "rm", "own:v1", "--yes")
    words = host.poclab("down", "use", "--yes", "--parked")
    assert words.stderr == "use is down\n"
    assert of_lab(host, "use") == []


def test_what_changed_meanwhile(host: Host) -> None:
    one = Vm("web", kept=False)
    file = labs.lab_file(host, "fit", one)
    host.poclab("up", file)
    host.virsh("destroy", "fit.web")
    (scratch,) = [x for x in disks(host, "fit.web") if x.startswith("scratch.")]
    digest = labs.scribble(host, scratch, 5)
    host.poclab("reset", "fit/web", "--keep-old")
    # The file keeps that disk from now on: there is no place for the one that is parked.
    host.poclab("up", labs.lab_file(host, "fit", replace(one, kept=True), file="keep"), "--yes")
    refused(host.poclab("restore", "fit/web", check=False), "data disk data was parked with it")
    # The file has none, and more memory: the disk comes back with the VM.
    other = labs.lab_file(host, "fit", Vm("web", memory=48), file="none")
    host.poclab("up", other, "--yes")
    host.poclab("restore", "fit/web", "--no-wait")
    assert scratch in disks(host, "fit.web")
    assert labs.look(host)["domains"]["fit.web"]["memory"] == 48 * 1024
    assert labs.content(host, scratch) == digest
    plan = host.poclab("plan", other).stdout
    assert "data disk data no longer asked for" in plan
    # A manifest that does not hold holds all the same, until gc is asked.
    host.poclab("reset", "fit/web", "--keep-old")
    (manifest,) = [x for x in of_lab(host, "fit") if x.startswith("parked.")]
    path = f"{labs.look(host)['directory']}/{manifest}"
    host.run("truncate", "-s", "40", path)
    assert f"damaged: {manifest}" in host.poclab("parked", "ls").stderr
    before = of_lab(host, "fit")
    host.poclab("reset", "fit/web", "--no-wait")
    assert {scratch, manifest} <= set(of_lab(host, "fit")) & set(before)
    assert manifest in host.poclab("gc", "--yes", "-o", "name").stdout
    assert not {scratch, manifest} & set(of_lab(host, "fit"))
    host.poclab("down", "fit", "--yes", "--volumes")
    assert of_lab(host, "fit") == []


# --- without the pool's directory ---------------------------------------------------------


def test_a_member_of_the_group_and_root_see_the_same(module_system: tuple[Host, Host]) -> None:
    root, member = map(quick, module_system)
    for tag in ("v1", "v2"):
        labs.store(root, f"tiny:{tag}")
    file = labs.lab_file(member, "shared", Vm("web", kept=False))
    member.poclab("up", file)
    before = disks(root, "shared.web")
    member.poclab("reset", "web", "--to", "v2", "--keep-old")
    assert parked(root) == parked(member)
    (row,) = parked(root)
    assert row["by"] == member.account.name
    refused(root.poclab("image", "rm", "tiny:v1", "--yes", check=False), name(row))
    root.poclab("restore", "web", "--keep-old", "--expires", "0m")
    member.poclab("restore", "web", "--keep-old")
    member.poclab("restore", "web@" + parked(root)[0]["time"])
    assert disks(root, "shared.web") == before
    assert parked(root) == []
    member.poclab("reset", "web", "--keep-old", "--expires", "0m")
    assert len(parked(member)) == 1
    member.poclab("gc", "--yes")
    assert (parked(root), labs.leftovers(root)) == ([], [])
    member.poclab("down", "shared", "--yes")
    assert of_lab(root, "shared") == []
    root.poclab("image", "rm", "tiny:v1", "tiny:v2", "--yes")


# --- stopped at each step -----------------------------------------------------------------


@dataclass(frozen=True)
class Undo:
    """A VM whose disks have content, and its lab."""

    host: Host
    lab: str

    def begin(self) -> dict[str, str]:
        """Bring it up; returns the digests of what is on its disks."""
        self.host.poclab("up", labs.lab_file(self.host, self.lab, Vm("web", kept=False)))
        self.host.virsh("destroy", f"{self.lab}.web")
        system, data = disks(self.host, f"{self.lab}.web")
        # Behind the boot sector, which has the guest shut down when it is asked.
        path = f"{labs.look(self.host)['directory']}/{system}"
        self.host.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", path)
        return {system: labs.content(self.host, system), data: labs.scribble(self.host, data, 7)}

    def check(self, content: dict[str, str]) -> None:
        """Nothing is lost: the VM stands on what is there, and the old disks are as they were."""
        domain = labs.look(self.host)["domains"][f"{self.lab}.web"]
        assert domain["lost"] == []
        assert [x for x in domain["missing"] if not x.startswith("scratch.")] == []
        assert {volume: labs.content(self.host, volume) for volume in content} == content

    def again(self, *args: str) -> Completed:
        done = self.host.poclab(*args, check=False)
        return self.host.poclab(*args, check=False) if labs.robbed(done) else done

    def survive(self, how: str, every: int) -> None:
        """Stop a reset and a restore at every step or every few, and run each again."""
        vm, path = f"{self.lab}.web", f"{self.lab}/web"
        content = self.begin()
        there = ("reset", path, "--to", "v2", "--keep-old")
        back = ("restore", path)
        counts = [len(self.host.count_steps(args).steps) for args in (there, back)]
        files = of_lab(self.host, self.lab)
        missed = 0
        for step in range(1, max(counts) + 1, every):
            stopped = self.host.stop_at(there, step, how)
            missed += not stopped.reached
            told(stopped, how)
            self.check(content)
            done = self.again(*there)
            assert done.returncode == 0, f"{step}: {done.stderr}"
            rows = parked(self.host, path)
            for row in rows[1:]:  # it was stopped when the new disk had run: that is kept, too
                self.host.poclab("parked", "drop", name(row), "--yes")
            assert len(rows) in (1, 2), rows
            self.check(content)
            assert labs.leftovers(self.host, self.lab) == []

            # With and without the time, since a restore that was begun is what is meant.
            args = back if step % 2 else ("restore", name(rows[0]))
            stopped = self.host.stop_at(args, step, how)
            told(stopped, how)
            self.check(content)
            if stopped.reached:
                done = self.again(*args)
                assert done.returncode == 0, f"{step}: {stopped.steps} {done.stderr}"
            assert sorted(disks(self.host, vm)) == sorted(content)
            assert of_lab(self.host, self.lab) == files
            self.check(content)
            assert labs.leftovers(self.host, self.lab) == []
        assert missed <= max(0, counts[1] - counts[0]) + 1
        self.host.poclab("down", self.lab, "--yes")
        assert of_lab(self.host, self.lab) == []


def test_no_stop_loses_anything(host: Host) -> None:
    plays = (("kill", 2), ("interrupt", 7), ("enospc", 5))
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(Undo(host, f"undo-{how}").survive, how, n) for how, n in plays]
    failed = [error for item in running if (error := item.exception())]
    assert failed == [], "\n\n".join(map(str, failed))


def test_completion_offers_what_is_parked(host: Host) -> None:
    file = labs.lab_file(host, "tab", Vm("web"))
    host.poclab("up", file)
    host.poclab("reset", "tab/web", "--keep-old")
    (row,) = parked(host, "tab")
    program = str(Path(host.place.installation.python).with_name("poclab"))
    words = f"COMP_WORDS=poclab restore {name(row)[:6]}"
    offered = host.run("env", "_POCLAB_COMPLETE=complete_bash", words, "COMP_CWORD=2", program)
    assert offered.stdout.split() == [name(row)]
    host.poclab("down", "tab", "--yes", "--parked")
