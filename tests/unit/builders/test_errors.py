"""What the real builders print when they fail, and what is made of it.

The texts are in tests/support/builder_texts/, one file for a refusal, word for word: image-builder
79.0.0 (`ib-`), the bootc-image-builder in it and the archived one (`bib-`), bootc 1.16.9
(`bootc-`), osbuild 191. They were recorded in November 2026.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from poclab.builders import errors
from poclab.builders.progress import Lines
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import printable

TEXTS = Path(__file__).parents[2] / "support/builder_texts"
LOG = Path("/l/build.log")
STORAGE = "not in root's container storage"


def read(name: str) -> Lines:
    """Let `Lines` see a recorded text."""
    lines = Lines()
    for line in (TEXTS / f"{name}.txt").read_text().splitlines():
        lines.see(line)
    return lines


def explained(name: str, code: int = 1) -> PoclabError:
    builder = {"ib": "image-builder", "bib": "bootc-image-builder", "bootc": "bootc install"}
    return errors.explained(read(name), code, LOG, "img:1", builder[name.partition("-")[0]])


# File, what the message has to say of why, what it has to say of what to do.
REFUSALS = (
    ("bib-missing", STORAGE, "podman image ls"),
    ("bib-nofs", "names no root file system", "rootfs: ext4"),
    ("bib-nolabel", "no label containers.bootc=1", "LABEL containers.bootc=1"),
    ("bib-typeiso-badver", 'parsing "rolling": invalid syntax', "VERSION_ID to a number"),
    ("bootc-badflag", "unexpected argument '--nonsense' found", "builder_args"),
    ("bootc-native", "open pid1 mountns: Permission denied", "--pid=host"),
    ("bootc-nofile", "Querying /output/none.raw: No such file", "see the log"),
    ("bootc-nofs", "open pid1 mountns", "--pid=host"),
    ("bootc-nopid", "podman --pid=host flag", "--pid=host"),
    ("bootc-nopriv", "not privileged", "--privileged"),
    ("bootc-nostorage", "open pid1 mountns", "--pid=host"),
    ("bootc-ostree", "open pid1 mountns", "--pid=host"),
    ("ib-badfs", "filesystem type name: zfs", "rootfs: ext4"),
    ("ib-badprogress", 'unknown progress type: "nonsense"', "see the log"),
    ("ib-badver", 'parsing "rolling": invalid syntax', "VERSION_ID to a number"),
    ("ib-missing", STORAGE, "podman image ls"),
    ("ib-nofs", "names no root file system", "rootfs: ext4"),
    ("ib-nolabel", "ended at once", "bootc image"),
    ("ib-noname", "missing NAME in os-release", "NAME"),
    ("ib-nover", "missing VERSION_ID in os-release", "VERSION_ID"),
    ("ib-failed-stage", "Can't lookup blockdev", "udev"),
)


@pytest.mark.parametrize(("name", "why", "fix"), REFUSALS)
def test_a_real_refusal(name: str, why: str, fix: str) -> None:
    error = explained(name)
    assert why in error.why
    assert fix in error.fix
    assert str(LOG) in error.what
    assert "failed" in error.what
    assert "could not be pulled" not in str(error)
    assert "modprobe" not in str(error)
    assert len(error.why) < 600


def test_every_recorded_text_is_looked_at() -> None:
    assert {path.stem for path in TEXTS.iterdir()} == {name for name, *_ in REFUSALS}


def test_a_failed_stage_is_named_with_its_exception() -> None:
    said = read("ib-failed-stage").said
    stage = "org.osbuild.bootc.install-to-filesystem"
    assert said.startswith(
        f"error running osbuild: exit status 1: {stage}: osbuild.host.RemoteError"
    )
    assert "/dev/loop0p4: Can't lookup blockdev." in said
    # Not what earlier stages print as a matter of routine.
    assert "setfiles" not in said
    assert printable(said) == said


@pytest.mark.parametrize(
    ("after", "said"),
    [
        # The end of every failed stage (osbuild 191, main_cli.py), with its colours.
        (
            [
                "Starting module org.osbuild.selinux",
                "Traceback (most recent call last):",
                '  File "/run/osbuild/bin/org.osbuild.selinux", line 73, in <module>',
                "    sys.exit(r)",
                "    ~~~~~~~~^^^",
                "subprocess.CalledProcessError: Command '['setfiles', '-F']' returned 1.",
                "Finished module org.osbuild.selinux",
                "Finished pipeline build",
                "manifest - failed",
                "",
                "Output:",
                "\x1b[0m\x1b[1m\x1b[31mFailed\x1b[0m",
            ],
            "org.osbuild.selinux: subprocess.CalledProcessError: Command '['setfiles', '-F']'"
            " returned 1.",
        ),
        # A program's own error, and not that of a stage that went well.
        (
            [
                "Starting module org.osbuild.a",
                "error: of no consequence",
                "Finished module org.osbuild.a",
                "Starting module org.osbuild.b",
                "error: Installing to filesystem: No space left on device (os error 28)",
                "Finished module org.osbuild.b",
                "manifest - failed",
                "Output:",
                "Failed",
            ],
            "org.osbuild.b: error: Installing to filesystem: No space left on device (os error 28)",
        ),
        (
            ["Starting module org.osbuild.c", "boom", "manifest - failed", "Failed"],
            "org.osbuild.c: boom",
        ),
        (["manifest - failed", "Output:", "Failed"], ""),
    ],
)
def test_what_osbuild_says_after_its_error(after: list[str], said: str) -> None:
    lines = Lines()
    for text in ("error: error running osbuild: exit status 1", "BuildLog:", "starting -", *after):
        lines.see(text)
    told = "error running osbuild: exit status 1"
    assert lines.said == (f"{told}: {said}" if said else told)


def test_podmans_error_does_not_replace_the_builders() -> None:
    lines = Lines()
    lines.see("Error: what podman says first")
    assert lines.said == "what podman says first"
    lines.see("error: the builder's own")
    lines.see("Error: initializing source docker://localhost/x: pinging container registry")
    assert lines.error == "the builder's own"
    error = errors.explained(lines, 1, LOG, "img:1")
    assert "builder's own container image" not in error.why
    assert "POCLAB_BIB_IMAGE" not in error.fix


@pytest.mark.parametrize(("code", "mirror"), [(125, True), (1, False)])
def test_a_builder_image_is_missing_only_when_podman_says_so(code: int, mirror: bool) -> None:
    lines = Lines()
    lines.see("Error: initializing source docker://quay.io/x: dial tcp: i/o timeout")
    error = errors.explained(lines, code, LOG, "img:1")
    assert ("POCLAB_BIB_IMAGE" in error.fix) is mirror


LOST = 'blueprint validation failed for image type "qcow2": customizations.{}: not supported'


def test_a_key_that_image_builder_refuses_is_named() -> None:
    lines = Lines()
    lines.see("error: Warnings during manifest creation:")
    lines.see(LOST.format("hostname"))
    error = errors.explained(lines, 1, LOG, "img:1", "image-builder")
    assert "customizations.hostname" in error.why
    assert "take customizations.hostname out of the blueprint" in error.fix
    assert "Containerfile" in error.fix
    short = Lines()
    short.see(f"error: {LOST.format('user[0].uid')}")
    assert "customizations.user[0].uid out" in errors.explained(short, 1, LOG, "i").fix


def test_a_key_that_bootc_image_builder_drops_is_warned_of() -> None:
    seen: list[tuple[str, str]] = []
    lines = Lines()
    with events.listening(lambda event: seen.append((event.kind, event.text))):
        # It prints no end of line after its warnings (manifestgen.go of image-builder 79.0.0).
        lines.see(LOST.format("hostname") + "msg: Done generating manifest")
        # What `disk` becomes there: it warns of that one, and does it.
        lines.see(LOST.format("filesystem") + "[1 / 4] Pipeline build")
    warnings = [text for kind, text in seen if kind == "warning"]
    assert warnings == [
        "the builder ignores customizations.hostname of the blueprint: set it in the Containerfile"
    ]
    told = [text for kind, text in seen if kind == "progress"]
    assert told == ["Done generating manifest", "Pipeline build"]
    assert lines.error == ""


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        # bootc-image-builder of image-builder 79.0.0, and the archived one.
        ("cannot ensure: chown permission check failed for the output directory", "local file"),
        ("chowning is not allowed in output directory", "local file"),
        ("no dnf in container", "dnf"),
        ("failed to run lsinitrd --mod --kver 6.1: exit status 127, output:", "dracut"),
        ("customizations.disk cannot be used with customizations.filesystem", "see the log"),
        ("mounting /dev/loop0p4 -> /mounts", "see the log"),
        ("losetup: cannot find an unused loop device", "modprobe loop"),
        (
            "losetup: /output/disk.raw: failed to set up loop device: No such device",
            "modprobe loop",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'loop-control'", "modprobe loop"),
    ],
)
def test_other_texts_of_today(text: str, fix: str) -> None:
    lines = Lines()
    lines.see(f"error: {text}")
    assert fix in errors.explained(lines, 1, LOG, "img:1").fix


def test_a_flood_after_an_error_is_bounded() -> None:
    lines = Lines()
    lines.see("error: x")
    for number in range(100_000):
        lines.see(f"{number} " + "y" * 5000)
    assert sum(len(line) for line in lines.after) < 1_000_000
    assert len(errors.explained(lines, 1, LOG, "img:1").why) < 600
