"""The images and labs that come along: they load, plan, and keep the rules of bootc images."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from poclab.builders.base import BuildRequest
from poclab.builders.bootc import check_request
from poclab.builders.inspect import LABEL
from poclab.schema.image import load_image
from poclab.schema.lab import load_lab
from tests.support import containerfile
from tests.support.containerfile import LINT, faults, steps
from tests.support.make import brought_up, observed, planned

ROOT = Path(__file__).parents[2]
IMAGES = sorted(path.parent for path in ROOT.glob("images/*/image.yaml"))
LABS = sorted(ROOT.glob("labs/*.yaml"))
# `shop` is built without any bootc, by the direct builder.
BOOTC = [image for image in IMAGES if load_image(image).builder != "direct"]
each_image = pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
each_bootc = pytest.mark.parametrize("image", BOOTC, ids=lambda path: path.name)
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda path: path.stem)


# --- images -------------------------------------------------------------------------------


def test_there_are_some() -> None:
    assert [path.name for path in IMAGES] == ["centos-db", "debian-web", "fedora-web", "shop"]
    assert {path.stem for path in LABS} >= {"bootc", "customer-a", "demo", "mixed"}


@each_image
def test_an_image_loads(image: Path) -> None:
    definition = load_image(image)
    assert definition.name == image.name
    assert definition.description
    assert definition.containerfile == image / "Containerfile"
    # The tag is what the version says of itself.
    assert definition.build_args_for("v7") == {"VERSION": "v7"}
    readme = (image / "README.md").read_text()
    assert f"poclab image build {image.name} --tag" in readme


@each_bootc
def test_a_bootc_image_keeps_the_rules(image: Path) -> None:
    text = (image / "Containerfile").read_text()
    assert faults(text) == []
    assert containerfile.file_faults(image / "rootfs") == []
    assert containerfile.units(image / "rootfs", text) == []


@each_bootc
def test_nobody_can_log_in_but_with_the_labs_key(image: Path) -> None:
    """No password, key or host key is in an image that everybody can build."""
    for path in image.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        assert not re.search(r"chpasswd|passwd -d|PRIVATE KEY|ssh-(rsa|ed25519) AAAA", text)


def test_debian_is_installed_as_its_family_needs() -> None:
    definition = load_image(ROOT / "images/debian-web")
    assert (definition.builder, definition.rootfs) == ("bootc", "xfs")
    assert definition.blueprint is None
    assert definition.builder_args == ()
    request = BuildRequest("x", "a" * 64, Path("/w"), Path("/w/log"), rootfs=definition.rootfs)
    check_request(request)


# --- labs ---------------------------------------------------------------------------------


@each_lab
@pytest.mark.parametrize("session", [False, True])
def test_a_lab_plans(lab: Path, session: bool) -> None:
    found = load_lab(lab)
    plan = planned(found, observed(session=session))
    made = {action.target for action in plan.actions if action.verb.value == "create"}
    assert made == {vm.name for vm in found.vms}
    # And there is nothing to do once it is up.
    assert planned(found, brought_up(found, session=session)).actions == ()


@each_lab
def test_a_labs_images_are_there(lab: Path) -> None:
    wanted = {vm.image for vm in load_lab(lab).vms}
    assert {ref.image for ref in wanted} <= {image.name for image in IMAGES}
    # Its head says how to build them, or it is about `shop`, which the README builds.
    text = lab.read_text() + (ROOT / "README.md").read_text()
    for ref in wanted - {ref for ref in wanted if ref.image == "shop"}:
        assert f"poclab image build {ref.image} --tag {ref.tag}" in text


def test_labs_do_not_get_in_each_others_way() -> None:
    """All of them can be up at once under qemu:///system."""
    networks = [net.cidr for lab in LABS for net in load_lab(lab).networks]
    for index, one in enumerate(networks):
        assert not any(one.overlaps(other) for other in networks[index + 1 :]), one


# --- the rules themselves -----------------------------------------------------------------

GOOD = f"""\
FROM quay.io/x/y:1
RUN dnf -y install a \\
    && dnf clean all && rm -rf /var/lib/dnf /var/log/dnf.log
# a comment
ARG VERSION=dev
RUN {LINT}
"""


def test_steps_are_read() -> None:
    assert [step.word for step in steps(GOOD)] == ["FROM", "RUN", "ARG", "RUN"]
    assert steps(GOOD)[1].text.startswith("dnf -y install a && dnf clean all")
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("y:1", "y:latest", "quay.io/x/y:latest is not pinned"),
        ("y:1", "y", "quay.io/x/y is not pinned"),
        ("quay.io/x/y:1", "reg.example:5000/y", "reg.example:5000/y is not pinned"),
        ("dnf -y", "dnf", "dnf install without -y"),
        ("dnf clean all", "true", "dnf install without dnf clean all"),
        ("/var/log/dnf.log", "", "logs of the installation stay in /var/log"),
        ("install a", "install a && dnf -y update", "what the base has is brought up to date"),
        ("RUN dnf", "RUN sudo dnf", "sudo in a build"),
        (f"RUN {LINT}\n", "", "its last step is not RUN bootc container lint"),
        (f"RUN {LINT}", f"RUN {LINT}\nRUN true", "its last step is not"),
        ("ARG VERSION=dev", "", "it does not take VERSION"),
        ("RUN dnf", "ARG VERSION\nRUN dnf", "packages are installed after ARG VERSION"),
        ("# a comment", "WORKDIR srv", "WORKDIR srv is relative"),
        ("# a comment", "CMD /sbin/init", "CMD is not in its JSON form"),
        ("# a comment", "VOLUME /data", "VOLUME means nothing"),
        ("# a comment", "RUN echo x > /run/x", "a file is written where"),
        ("# a comment", "ADD https://x.example/a /", "ADD fetches"),
        ("# a comment", "RUN apt install -y x", "apt is for terminals"),
        ("# a comment", "RUN apt-get update && apt-get -y install x", "apt-get install without rm"),
    ],
)
def test_the_rules_catch(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    assert any(said.startswith(fault) for said in faults(GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    "image", ["quay.io/x/y@sha256:" + "a" * 64, "reg.example:5000/y:1", "scratch"]
)
def test_pinned_bases(image: str) -> None:
    assert faults(GOOD.replace("quay.io/x/y:1", image)) == []


def test_files_that_are_not_an_images(tmp_path: Path) -> None:
    for name in ("var/lib/x", "usr/libexec/x", "usr/lib/tmpfiles.d/x.conf", "usr/share/fine"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("d /var/x 0755 root root -\nbroken\n")
    assert containerfile.file_faults(tmp_path) == [
        "/usr/lib/tmpfiles.d/x.conf: 'broken'",
        "/usr/libexec/x cannot be executed",
        "/var would not be the image's at run time",
        "/var/lib would not be the image's at run time",
        "/var/lib/x would not be the image's at run time",
    ]


# --- the database's disk ------------------------------------------------------------------

SCRIPT = ROOT / "images/centos-db/rootfs/usr/libexec/centos-db/data"
TOOLS = ("udevadm", "blkid", "mkfs.xfs", "mountpoint", "mount", "chown", "chmod", "restorecon",
         "postgresql-setup")  # fmt: skip


def run_data(
    tmp_path: Path, *, disk: bool, blkid: int, mounted: bool, made: bool
) -> tuple[int, str]:
    """Run the script with programs that note how they are called; gives status and calls."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    log.touch()
    codes = {"blkid": blkid, "mountpoint": 0 if mounted else 1}
    for tool in TOOLS:
        path = tools / tool
        path.write_text(f'#!/bin/sh\necho "{tool} $*" >> {log}\nexit {codes.get(tool, 0)}\n')
        path.chmod(0o755)
    data = tmp_path / "pgdata"
    data.mkdir()
    if made:
        (data / "PG_VERSION").write_text("16\n")
    node = tmp_path / "virtio-data"
    if disk:
        node.touch()
    env = dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}", PGDATA=str(data))
    done = subprocess.run([SCRIPT, node], env=env, capture_output=True, timeout=30, check=False)
    calls = [line.split()[0] for line in log.read_text().splitlines()]
    return done.returncode, " ".join(calls)


@pytest.mark.parametrize(
    ("disk", "blkid", "mounted", "made", "code", "calls"),
    [
        # No disk: the database is on the system disk.
        (False, 0, False, False, 0, "udevadm postgresql-setup"),
        (False, 0, False, True, 0, "udevadm"),
        # A blank one is formatted, one with something on it never is.
        (True, 2, False, False, 0,
         "udevadm blkid mkfs.xfs mountpoint mount chown chmod restorecon postgresql-setup"),
        (True, 0, False, True, 0, "udevadm blkid mountpoint mount chown chmod restorecon"),
        (True, 0, True, True, 0, "udevadm blkid mountpoint chown chmod restorecon"),
        # In doubt nothing is touched, and the database does not start.
        (True, 8, False, False, 1, "udevadm blkid"),
        (True, 4, False, True, 1, "udevadm blkid"),
    ],
)  # fmt: skip
def test_a_disk_is_formatted_only_when_it_is_blank(
    tmp_path: Path, disk: bool, blkid: int, mounted: bool, made: bool, code: int, calls: str
) -> None:
    assert run_data(tmp_path, disk=disk, blkid=blkid, mounted=mounted, made=made) == (code, calls)


def test_the_label_is_the_bases() -> None:
    """No image says of itself that it is a bootc image: its base does, or it would be untrue."""
    for image in BOOTC:
        assert LABEL not in (image / "Containerfile").read_text()
