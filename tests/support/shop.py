"""The image `shop` in its three versions for a test's host, and one of Debian.

Built once a run by the product, as an ordinary user; hosts that come later get the disks.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from poclab.model.version_volumes import base_volume
from tests.support import accounts, hosts
from tests.support.hosts import Host

TAGS = ("v1", "v2", "v3")
# What a VM of it gets unless its file says otherwise.
DEFAULTS = "memory: 256MiB, ready: {ssh: true, timeout: 120}"
DEBIAN = "localhost/poclab-test/debian:12"


def base(host: Host) -> None:
    """Make the container image that `shop` is built on, in the account's storage."""
    downloads = accounts.CHECKOUT / ".cache/shop-base"
    downloads.mkdir(parents=True, exist_ok=True)
    if os.getuid() == 0:
        # Downloads outlive the run where the account can write them.
        for path in [downloads, *downloads.iterdir()]:
            os.chown(path, host.account.uid, host.account.gid)
    writable = host.run("test", "-w", str(downloads), check=False).returncode == 0
    where = downloads if writable else host.scratch / "shop-base"
    host.run("images/shop/base", timeout=300, POCLAB_CACHE=str(where))


def build(host: Host, tags: Sequence[str] = TAGS) -> None:
    """Build versions on a host as its user would, and keep their disks for `give`."""
    base(host)
    for tag in tags:
        host.poclab("image", "build", "shop", "--tag", tag, POCLAB_PACK="0")
    rows = json.loads(host.poclab("image", "ls", "shop", "-o", "json").stdout)
    directory = host.virsh("pool-dumpxml", "poclab").split("<path>")[1].split("<")[0]
    for row in rows:
        disk = Path(directory) / base_volume(row["digest"])
        shutil.copyfile(disk, _kept() / f"{row['tag']}.qcow2")
        (_kept() / f"{row['tag']}.qcow2").chmod(0o644)


@cache
def _kept() -> Path:
    made = Path(tempfile.mkdtemp(prefix="poclab-shop-", dir="/tmp"))
    made.chmod(0o755)
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def disk(tag: str) -> Path:
    """The qcow2 file of a version, built in a session of its own if no test has done so."""
    path = _kept() / f"{tag}.qcow2"
    if not path.exists():
        with hosts.session() as host:
            build(host)
    return path


def give(host: Host, tags: Sequence[str] = TAGS) -> None:
    """Store versions of `shop` on a host."""
    for tag in tags:
        host.poclab("image", "import", f"shop:{tag}", str(disk(tag)))


def debian_image(host: Host) -> None:
    """Make the container image of Debian with systemd, in the account's storage."""
    cached = accounts.CHECKOUT / ".cache"
    readable = host.run("test", "-r", str(cached / "debian-guest"), check=False).returncode == 0
    if not readable:
        cached = host.scratch / "cache"
        shutil.copytree(accounts.CHECKOUT / ".cache/debian-guest", cached / "debian-guest")
        host.give(cached)
    command = "tests/support/debian_guest/build"
    host.run(command, timeout=300, POCLAB_TEST_CACHE=str(cached))


def debian(host: Host, tag: str) -> None:
    """Build a version of Debian with systemd on a host, from an image that knows no poclab."""
    debian_image(host)
    text = f"builder: direct\ncontainer: {DEBIAN}\nrootfs: ext4\ndisk: 2GiB\n"
    text += "kernel_args: [console=ttyS0]\nuser: root\n"
    definition = host.write("debian/image.yaml", text).parent
    host.poclab("image", "build", str(definition), "--tag", tag)


@dataclass(frozen=True)
class Page:
    """What the shop's web page says.

    Attributes:
        version: the version that answers.
        visits: how often it was asked.
    """

    version: str
    visits: int


def page(host: Host, address: str, patience: float = 20) -> Page:
    """Ask a shop for its page; a guest that is ready over SSH may need a moment for it."""
    limit = time.monotonic() + patience
    while True:
        done = host.run("curl", "-sS", "-m", "10", f"http://{address}/", check=False)
        if done.returncode == 0 and done.stdout.startswith("shop "):
            version, visits = done.stdout.split("\n")[:2]
            return Page(version.removeprefix("shop "), int(visits.removeprefix("visits: ")))
        assert time.monotonic() < limit, f"{address}: {done.stdout}{done.stderr}"
        time.sleep(0.3)


def ssh(host: Host, vm: str, *words: str) -> str:
    """Run a command in a VM (`LAB/VM`) that must succeed."""
    return host.poclab("ssh", vm, "--", *words).stdout


def pings(host: Host, vm: str, address: str, count: int = 1) -> bool:
    """Whether a VM reaches an address."""
    words = ("ping", "-c", str(count), "-W", "2", address)
    return host.poclab("ssh", vm, "--", *words, check=False).returncode == 0


def counter(host: Host, rule: str) -> int:
    """What an nftables counter of the host's network namespace counted; the rule's comment."""
    done = host.run("nft", "-j", "list", "ruleset")
    for item in json.loads(done.stdout)["nftables"]:
        if item.get("rule", {}).get("comment") == rule:
            (found,) = [part["counter"] for part in item["rule"]["expr"] if "counter" in part]
            packets: int = found["packets"]
            return packets
    raise AssertionError(f"there is no rule {rule}: {done.stdout}")


def count(host: Host, table: str, rules: str) -> None:
    """Count packets of the host's namespace; see nft(8)."""
    subprocess.run(
        host.place.argv("nft", "-f", "-"),
        input=f"table inet {table} {{ {rules} }}",
        text=True,
        check=True,
        timeout=30,
    )
