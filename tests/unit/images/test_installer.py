"""Installers of versions, without any container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poclab.builders import osbuild
from poclab.builders.base import ANACONDA_ISO
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.process import using
from poclab.images import installer
from poclab.model.version import Origin, Version
from tests.support import make
from tests.support.fake_podman import FakePodman

NAME = "localhost/poclab/web:v1"


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePodman]:
    for name in osbuild.VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with using(FakePodman()) as fake:
        assert isinstance(fake, FakePodman)
        yield fake


def built(image_id: str, source: str = NAME, **inputs: str) -> Version:
    origin = Origin("built", source, "sha256:1", "direct", {"image_id": image_id, **inputs})
    return make.version("web:v1", origin=origin)


def test_a_name_that_is_still_its_own(podman: FakePodman) -> None:
    image_id = podman.add("quay.io/x/web:1")
    found = installer.container_image(built(image_id, "quay.io/x/web:1"))
    assert (found.id, found.name) == (image_id, "quay.io/x/web:1")
    assert not [call for call in podman.calls if call[1] == "tag"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_name_that_is_not(podman: FakePodman, taken: bool) -> None:
    """A registry's name is not given to another image; the version's own name is."""
    image_id = podman.add("quay.io/x/web:1")
    if taken:
        podman.add("quay.io/x/web:1")
    else:
        del podman.images["quay.io/x/web:1"]
    found = installer.container_image(built(image_id, "quay.io/x/web:1"))
    assert (found.id, found.name) == (image_id, NAME)
    assert ["podman", "tag", image_id, NAME] in podman.calls


@pytest.mark.parametrize("kind", ["imported", "committed"])
def test_versions_that_were_not_built(podman: FakePodman, kind: str) -> None:
    version = make.version("web:v1", origin=Origin(kind, "disk.qcow2"))
    with pytest.raises(PoclabError, match="web:v1 has no container image") as caught:
        installer.container_image(version)
    assert kind in caught.value.why
    assert podman.calls == []


@pytest.mark.parametrize("image_id", ["", "f" * 64])
def test_an_image_that_is_gone(podman: FakePodman, image_id: str) -> None:
    podman.add(NAME)  # another one by now
    with pytest.raises(PoclabError, match="not in this user's storage") as caught:
        installer.container_image(built(image_id))
    assert "poclab image build web --tag" in caught.value.fix


@pytest.mark.parametrize(
    ("inputs", "variable", "expected"),
    [
        ({"program": osbuild.BIB, "builder_image": "mirror/bib:1"}, "", "mirror/bib:1"),
        ({"program": osbuild.BIB, "builder_image": "mirror/bib:1"}, "other:1", None),
        ({"program": osbuild.IMAGE_BUILDER, "builder_image": "mirror/ib:1"}, "", None),
        ({}, "", None),
    ],
)
def test_the_builder_that_made_the_disk(
    podman: FakePodman,
    monkeypatch: pytest.MonkeyPatch,
    inputs: dict[str, str],
    variable: str,
    expected: str | None,
) -> None:
    monkeypatch.setenv(osbuild.BIB_VARIABLE, variable)
    assert installer._builder_image(built("a" * 64, **inputs), osbuild.BIB) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "the installer asks for the disk"),
        ({"unattended": True}, "erases the disks"),
        ({"kickstart": Path("x.ks")}, "does what x.ks says"),
    ],
)
def test_what_the_installer_will_do_is_said(given: dict[str, Any], expected: str) -> None:
    settings: dict[str, Any] = {"unattended": True} if given.get("unattended") else {}
    custom = {"installer": settings}
    seen: list[events.Event] = []
    with events.listening(seen.append):
        installer._tell(
            installer.InstallerRequest(Path("o"), **given),
            ANACONDA_ISO,
            {"customizations": custom},
        )
    (event,) = seen
    assert expected in event.text
    assert event.kind == ("warning" if "unattended" in given else "note")
