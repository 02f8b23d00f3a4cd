"""The image `site`: the image `shop` with a stand-in for bootc in it, see README.md here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.support import accounts, shop
from tests.support.hosts import Host

_HERE = Path(__file__).parent


def build(host: Host, tags: Sequence[str]) -> None:
    """Build versions of `site` on a host, as its user would."""
    shop.base(host)
    made = host.scratch / "images/site"
    shutil.copytree(accounts.CHECKOUT / "images/shop", made)
    program = made / "rootfs/usr/bin/bootc"
    program.parent.mkdir(exist_ok=True)
    shutil.copy(_HERE / "bootc", program)
    inittab = made / "rootfs/etc/inittab"
    inittab.write_text("::sysinit:/usr/bin/bootc boot\n" + inittab.read_text())
    host.give(host.scratch / "images")
    for tag in tags:
        host.poclab("image", "build", str(made), "--tag", tag, POCLAB_PACK="0")


def build_twin(host: Host, tag: str, of: str) -> None:
    """Build another image with the content of a version, which only its labels tell apart."""
    made = host.scratch / "images/site"
    containerfile = made / "Containerfile"
    text = containerfile.read_text()
    containerfile.write_text(f"{text}LABEL poclab-test.twin={tag}\n")
    argument = f"VERSION={of}"
    words = ("image", "build", str(made), "--tag", tag, "--build-arg", argument)
    host.poclab(*words, POCLAB_PACK="0")
    containerfile.write_text(text)
