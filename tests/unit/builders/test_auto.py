"""Which builder `auto` takes, and what it says of why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from poclab.builders import osbuild
from poclab.builders.auto import NAMES, builder_for
from poclab.containers.podman import ImageInfo
from poclab.core.errors import UsageError
from poclab.core.process import using
from poclab.schema.image import BUILDERS
from tests.support.fake_podman import FakePodman

BOOTC = {"containers.bootc": "1"}
DEBIAN = {"usr/lib/os-release": b"ID=ubuntu\nID_LIKE=debian\n"}
HAS_BOOTC = {"usr/bin/bootc": b"\x7fELF"}


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePodman]:
    for name in (osbuild.BIB_VARIABLE, osbuild.IMAGE_BUILDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with using(FakePodman()) as fake:
        assert isinstance(fake, FakePodman)
        yield fake


def chosen(labels: dict[str, str] = BOOTC, **more: str) -> tuple[str, str]:
    builder, why = builder_for("auto", ImageInfo("a" * 64, "x", "", labels), **more)
    return builder.name, why


def test_each_builder_has_its_name(podman: FakePodman) -> None:
    assert NAMES == BUILDERS
    for name in NAMES[1:]:
        assert builder_for(name, ImageInfo("a" * 64, "x"))[0].name == name
    with pytest.raises(UsageError, match="no builder"):
        builder_for("packer", ImageInfo("a" * 64, "x"))


def test_an_image_that_is_not_bootc(podman: FakePodman) -> None:
    assert chosen({}) == ("direct", "the image has no label containers.bootc=1")


def test_image_builder_of_the_host_goes_first(podman: FakePodman) -> None:
    podman.missing.clear()
    podman.add(osbuild.BIB_IMAGE)
    assert chosen() == ("image-builder", "it is a bootc image, and this host has image-builder")


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ([osbuild.IMAGE_BUILDER_IMAGE, osbuild.BIB_IMAGE], "image-builder"),
        ([osbuild.BIB_IMAGE], "bootc-image-builder"),
        ([], "image-builder"),
    ],
)
def test_the_builder_image_that_is_there(podman: FakePodman, there: list[str], name: str) -> None:
    for image in there:
        podman.add(image)
    assert chosen()[0] == name


@pytest.mark.parametrize(
    ("bib", "image_builder", "there", "name"),
    [
        # Who named one means that one, wherever it is.
        ("mirror.example/bib:1", "", [], "bootc-image-builder"),
        ("", "mirror.example/ib:1", [], "image-builder"),
        ("mirror.example/bib:1", "mirror.example/ib:1", [], "image-builder"),
        (
            "mirror.example/bib:1",
            "mirror.example/ib:1",
            ["mirror.example/bib:1"],
            "bootc-image-builder",
        ),
        ("localhost/bib", "", ["localhost/bib"], "bootc-image-builder"),
        ("localhost/bib", "", ["localhost/bib", osbuild.IMAGE_BUILDER_IMAGE], "image-builder"),
        ("localhost/bib", "localhost/ib", ["localhost/ib"], "image-builder"),
    ],
)
def test_a_builder_image_that_the_environment_names(
    podman: FakePodman,
    monkeypatch: pytest.MonkeyPatch,
    bib: str,
    image_builder: str,
    there: list[str],
    name: str,
) -> None:
    for variable, image in (
        (osbuild.BIB_VARIABLE, bib),
        (osbuild.IMAGE_BUILDER_VARIABLE, image_builder),
    ):
        if image:
            monkeypatch.setenv(variable, image)
    for image in there:
        podman.add(image)
    assert chosen()[0] == name


def test_a_named_builder_image_that_is_nowhere(
    podman: FakePodman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(osbuild.BIB_VARIABLE, "localhost/bib")
    name, why = chosen()
    assert name == "direct"
    assert "'localhost/bib' is not in root's storage" in why


@pytest.mark.parametrize(
    ("entrypoint", "name"),
    [
        ("/usr/bin/image-builder", "image-builder"),
        ("/usr/bin/bootc-image-builder", "bootc-image-builder"),
        ("/entrypoint.sh", "bootc-image-builder"),
    ],
)
def test_a_builder_image_that_is_there_says_what_it_is(
    podman: FakePodman, entrypoint: str, name: str
) -> None:
    podman.add("mirror.example/any:1")
    podman.entrypoints["mirror.example/any:1"] = [entrypoint]
    assert chosen(builder_image="mirror.example/any:1")[0] == name


def test_a_builder_image_of_ones_own(podman: FakePodman) -> None:
    assert chosen(builder_image="mirror.example/builder:1")[0] == "bootc-image-builder"
    name, why = chosen(builder_image="localhost/builder")
    assert name == "direct"
    assert "'localhost/builder' is not in root's storage" in why
    podman.files |= HAS_BOOTC
    name, why = chosen(builder_image="localhost/builder")
    assert name == "bootc"
    assert "the image has bootc" in why


def test_debians_family(podman: FakePodman) -> None:
    podman.add(osbuild.BIB_IMAGE)
    podman.files |= DEBIAN
    name, why = chosen()
    assert name == "direct"
    assert "Debian's family, and it has no bootc" in why
    podman.files |= HAS_BOOTC
    name, why = chosen()
    assert name == "bootc"
    assert "Debian's family" in why
    # Whatever it looked at, nothing of the image ran and no container is left.
    assert not [call for call in podman.calls if call[1] == "run"]
    made = [call[call.index("--name") + 1] for call in podman.calls if call[1] == "create"]
    assert podman.removed == made


def test_without_root(podman: FakePodman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    podman.missing.add("sudo")
    name, why = chosen()
    assert name == "direct"
    assert "no sudo" in why
