"""Installer ISOs as the stand-ins make them: they start, and hold what Anaconda would install.

Where the files lie is as in the real ones: the container image as an OCI layout in `/container`,
kickstarts in `/osbuild.ks` and `/osbuild-base.ks`, kernel and initramfs in `/images/pxeboot`
(osbuild/images: pkg/manifest/anaconda_installer_iso_tree.go). There is no Anaconda in them, and an
image that installs is a tar file and no squashfs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.support.builder_standin import image_tar
from tests.support.builder_standin.blueprint import Customizations
from tests.support.builder_standin.storage import Image, Storage

LABEL = "Container-Installer-x86_64"
_MOUNT = Path("/run/standin")
_LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
_MEDIA = "application/vnd.oci.image."
_UNATTENDED = """\
rootpw --lock
lang en_US.UTF-8
keyboard us
timezone UTC
clearpart --all
network --device=link --bootproto=dhcp --onboot=on --activate
"""


def make(
    store: Storage,
    payload: Image,
    name: str,
    output: Path,
    step: Callable[[str], None],
    *,
    rootfs: str = "",
    custom: Customizations | None = None,
    installer: Image | None = None,
) -> Path:
    """Make an ISO that installs an image.

    Args:
        store: where the images are.
        payload: what is installed.
        name: its name.
        output: where the ISO goes.
        step: told of each step.
        rootfs: the root file system's type.
        custom: the blueprint; without one there are no kickstarts, as in a bootc-generic-iso.
        installer: the image that installs; its files go into `/LiveOS`.
    """
    work = Path(tempfile.mkdtemp(prefix="osbuild-", dir=output))
    try:
        tree = work / "tree"
        (tree / "images/pxeboot").mkdir(parents=True)
        step("org.osbuild.skopeo")
        with store.files(payload, _MOUNT) as files:
            image_tar.write(files, work / "layer.tar", [])
            _boot_files(files, tree)
        oci_layout(tree / "container", work / "layer.tar", payload.labels)
        if installer is not None:
            (tree / "LiveOS").mkdir()
            with store.files(installer, _MOUNT) as files:
                image_tar.write(files, tree / "LiveOS/installer.tar", [])
                _boot_files(files, tree)
        if custom is not None:
            step("org.osbuild.kickstart")
            for file, text in kickstarts(name, rootfs, custom).items():
                (tree / file).write_text(text)
        step("org.osbuild.xorrisofs")
        iso = work / "install.iso"
        _xorrisofs(tree, _efi(work), iso)
        done = output / "install.iso"
        iso.rename(done)
        return done
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _boot_files(files: Path, tree: Path) -> None:
    modules = next(iter((files / "usr/lib/modules").glob("*/vmlinuz"))).parent
    shutil.copy(modules / "vmlinuz", tree / "images/pxeboot/vmlinuz")
    shutil.copy(modules / "initramfs.img", tree / "images/pxeboot/initrd.img")


def kickstarts(name: str, rootfs: str, custom: Customizations) -> dict[str, str]:
    """The kickstart files of an installer."""
    base = (
        "ostreecontainer --url=/run/install/repo/container --transport=oci "
        "--no-signature-verification\n"
    )
    after = (
        f"%post --erroronfail\nbootc switch --mutate-in-place --transport registry {name}\n%end\n"
    )
    for user in custom.users:
        groups = ",".join(user.get("groups", []))
        base += f"user --name {user['name']}{f' --groups {groups}' if groups else ''}\n"
    own = custom.kickstart
    if own is None:
        base += _UNATTENDED
        if custom.kernel_args:
            base += f'bootloader --append="{" ".join(custom.kernel_args)}"\n'
        own = f"autopart --nohome --type=plain --fstype={rootfs}\nreboot --eject\n"
    return {
        "osbuild-base.ks": base + after,
        "osbuild.ks": f"%include /run/install/repo/osbuild-base.ks\n{own}",
    }


def oci_layout(target: Path, layer: Path, labels: dict[str, str]) -> None:
    """Write an image of one layer (OCI image layout specification)."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": _MEDIA + kind, "digest": f"sha256:{digest}", "size": len(data)}

    data = layer.read_bytes()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]}
    about = {"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {"Labels": labels}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}manifest.v1+json",
        "config": put(json.dumps(about).encode(), "config.v1+json"),
        "layers": [put(gzip.compress(data, 1, mtime=0), "layer.v1.tar+gzip")],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")],
    }
    (target / "index.json").write_text(json.dumps(index))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _efi(work: Path) -> Path:
    """A FAT file system with a boot loader, as firmware looks for it."""
    image = work / "efiboot.img"
    with image.open("wb") as file:
        file.truncate(4 * 1024**2)
    _run("mformat", "-i", str(image), "-v", "ANACONDA", "::")
    _run("mmd", "-i", str(image), "::/EFI", "::/EFI/BOOT")
    _run("mcopy", "-i", str(image), str(_LOADER), "::/EFI/BOOT/BOOTX64.EFI")
    return image


def _xorrisofs(tree: Path, efi: Path, iso: Path) -> None:
    # xorrisofs(1): an appended EFI partition that El Torito points at as well, so that the file
    # starts from a disc and, written to it as a whole, from a stick.
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-V", LABEL, "-R", "-J"]
    argv += ["-partition_offset", "16", "-appended_part_as_gpt"]
    argv += ["-append_partition", "2", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", str(efi)]
    argv += ["-e", "--interval:appended_partition_2:all::", "-no-emul-boot"]
    _run(*argv, "-o", str(iso), str(tree))


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise OSError(f"{argv[0]}: {done.stderr.strip()[-500:]}")
