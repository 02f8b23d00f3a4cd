"""The commands that run the disk builders, word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from poclab.builders import commands, osbuild
from poclab.builders.base import ANACONDA_ISO, BOOTC_INSTALLER, GENERIC_ISO, BuildRequest
from poclab.builders.commands import Setup
from poclab.core.errors import UsageError

NAME = "localhost/poclab/web:v1"
STORE = Path("/var/lib/containers/storage")
RUN = "podman run --rm --name poclab-x-1 --privileged --pull=never"
RUN += " --security-opt label=type:unconfined_t"
MOUNTS = f"-v /w/out:/output -v {STORE}:{STORE}"

REQUEST = BuildRequest(NAME, "a" * 64, Path("/w"), Path("/w/log"))
MORE = replace(
    REQUEST, rootfs="xfs", kernel_args=("console=ttyS0", "quiet"), builder_args=("--seed", "1")
)
SETUP = Setup(Path("/w/out"), STORE, "poclab-x-1", "builder:1")
ELSEWHERE = Setup(
    Path("/w/out"),
    Path("/srv/containers"),
    "poclab-x-1",
    "mirror.example/builder:2",
    config=Path("/w/blueprint.json"),
    owner="1000:100",
    root=False,
)


def test_bib() -> None:
    assert " ".join(commands.bib(REQUEST, SETUP)) == (
        f"{RUN} {MOUNTS} builder:1 --type qcow2 --rootfs ext4 --chown 0:0 --progress=debug {NAME}"
    )


def test_bib_with_everything() -> None:
    # The kernel arguments are in the blueprint.
    assert " ".join(commands.bib(MORE, ELSEWHERE)) == (
        f"sudo {RUN} -v /w/out:/output -v /srv/containers:{STORE} "
        "-v /srv/containers:/srv/containers -v /w/blueprint.json:/config.json:ro "
        "mirror.example/builder:2 --type qcow2 --rootfs xfs --chown 1000:100 --progress=debug "
        f"--seed 1 {NAME}"
    )


def test_image_builder() -> None:
    assert " ".join(commands.image_builder(REQUEST, SETUP)) == (
        f"{RUN} {MOUNTS} builder:1 build qcow2 --bootc-ref {NAME} --bootc-default-fs ext4 "
        "--output-dir /output --output-name disk.qcow2 --progress=debug"
    )


def test_image_builder_with_everything() -> None:
    setup = replace(ELSEWHERE, progress="file")
    assert " ".join(commands.image_builder(MORE, setup)) == (
        f"sudo {RUN} -v /w/out:/output -v /srv/containers:{STORE} "
        "-v /srv/containers:/srv/containers -v /w/blueprint.json:/config.json:ro "
        f"mirror.example/builder:2 build qcow2 --bootc-ref {NAME} --bootc-default-fs xfs "
        "--blueprint /config.json --output-dir /output --output-name disk.qcow2 "
        "--progress=file --seed 1"
    )


def test_image_builder_with_a_larger_root() -> None:
    command = commands.image_builder(REQUEST, replace(SETUP, root_size=12345))
    assert command[command.index("--image-size") + 1] == "12345"


def test_image_builder_of_the_host() -> None:
    setup = replace(ELSEWHERE, program="")
    assert " ".join(commands.image_builder(MORE, setup)) == (
        f"sudo image-builder build qcow2 --bootc-ref {NAME} --bootc-default-fs xfs "
        "--blueprint /w/blueprint.json --output-dir /w/out --output-name disk.qcow2 "
        "--progress=debug --seed 1"
    )


INSTALLER = "registry.example/installer:1"


def test_bib_makes_an_installer_of_packages() -> None:
    request = replace(REQUEST, output=ANACONDA_ISO)
    assert " ".join(commands.bib(request, SETUP)) == (
        f"{RUN} {MOUNTS} builder:1 --type anaconda-iso --rootfs ext4 --chown 0:0 "
        f"--progress=debug {NAME}"
    )


def test_bib_makes_an_installer_of_an_image() -> None:
    request = replace(MORE, output=BOOTC_INSTALLER, installer=INSTALLER)
    assert " ".join(commands.bib(request, replace(SETUP, config=ELSEWHERE.config))) == (
        f"{RUN} {MOUNTS} -v /w/blueprint.json:/config.json:ro builder:1 --type bootc-installer "
        f"--rootfs xfs --chown 0:0 --progress=debug --installer-payload-ref {NAME} --seed 1 "
        f"{INSTALLER}"
    )


def test_image_builder_makes_a_generic_installer() -> None:
    request = replace(REQUEST, output=GENERIC_ISO, installer=INSTALLER)
    assert " ".join(commands.image_builder(request, SETUP)) == (
        f"{RUN} {MOUNTS} builder:1 build bootc-generic-iso --bootc-ref {INSTALLER} "
        f"--bootc-installer-payload-ref {NAME} --bootc-default-fs ext4 "
        "--output-dir /output --output-name install.iso --progress=debug"
    )


def test_image_builder_of_the_host_makes_an_installer() -> None:
    request = replace(REQUEST, output=BOOTC_INSTALLER, installer=INSTALLER, rootfs="xfs")
    setup = replace(ELSEWHERE, program="", progress="file")
    assert " ".join(commands.image_builder(request, setup)) == (
        f"sudo image-builder build bootc-installer --bootc-ref {INSTALLER} "
        f"--bootc-installer-payload-ref {NAME} --bootc-default-fs xfs "
        "--blueprint /w/blueprint.json --output-dir /w/out --output-name install.iso "
        "--progress=file"
    )


def test_bootc() -> None:
    assert " ".join(commands.bootc(MORE, SETUP)) == (
        f"{RUN} --pid=host --ipc=host -v /dev:/dev -v {STORE}:{STORE} -v /w/out:/output {NAME} "
        "bootc install to-disk --generic-image --via-loopback --filesystem xfs "
        "--karg console=ttyS0 --karg quiet --seed 1 /output/disk.raw"
    )


def test_bootc_in_an_image_with_an_entrypoint_of_debians_family() -> None:
    family = ("--composefs-backend", "--bootloader", "systemd", "--wipe")
    setup = replace(SETUP, clear_entrypoint=True, family_args=family, root=False)
    command = commands.bootc(REQUEST, setup)
    assert command[command.index("--entrypoint") + 1] == ""
    assert " ".join(command[command.index(NAME) :]) == (
        f"{NAME} bootc install to-disk --generic-image --via-loopback --filesystem ext4 "
        "--composefs-backend --bootloader systemd --wipe /output/disk.raw"
    )
    assert command[0] == "sudo"


CONTRACTS = pytest.mark.parametrize(
    "contract", [commands.bib, commands.image_builder, commands.bootc]
)


@CONTRACTS
def test_nothing_deprecated_is_passed(contract: osbuild.Argv) -> None:
    words = {word.partition("=")[0] for word in contract(MORE, ELSEWHERE)}
    assert not words & {"--local", "--tls-verify", "--data-dir", "--force-data-dir"}


@CONTRACTS
@pytest.mark.parametrize(
    "setup", [replace(SETUP, output=Path("/w:x/out")), replace(SETUP, storage=Path("/a:b"))]
)
def test_a_colon_in_a_path_is_refused(contract: osbuild.Argv, setup: Setup) -> None:
    with pytest.raises(UsageError, match="cannot mount"):
        contract(REQUEST, setup)


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        (osbuild.BIB, "--local"),
        (osbuild.BIB, "--tls-verify=false"),
        (osbuild.BIB, "--type=raw"),
        (osbuild.BIB, "--rootfs"),
        (osbuild.BIB, "--chown=1:1"),
        (osbuild.BIB, "-v"),
        (osbuild.BIB, "--installer-payload-ref=x"),
        (osbuild.IMAGE_BUILDER, "--local"),
        (osbuild.IMAGE_BUILDER, "--bootc-ref=x"),
        (osbuild.IMAGE_BUILDER, "--output-dir"),
        (osbuild.IMAGE_BUILDER, "--bootc-installer-payload-ref"),
        (osbuild.IMAGE_BUILDER, "--progress=term"),
    ],
)
def test_arguments_that_are_poclabs_own(name: str, arg: str) -> None:
    with pytest.raises(UsageError, match=arg.partition("=")[0]):
        osbuild.check_args((arg,), name)
    osbuild.check_args(("--seed=1",), name)
