"""The builder on `bootc install to-disk`, without any container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poclab.builders.base import BuildRequest
from poclab.builders.bootc import Bootc, family_args
from poclab.builders.inspect import Inside
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import using
from poclab.core.units import GIB, MIB
from poclab.disks.inspection import inspect_file
from tests.support.fake_podman import FakePodman

NAME = "localhost/poclab/web:v1"
DEBIAN = Inside(os_release="ID=debian\n", bootc=True)


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePodman]:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with using(FakePodman()) as fake:
        assert isinstance(fake, FakePodman)
        fake.host["losetup"] = ""
        fake.files["usr/bin/bootc"] = b"\x7fELF"
        yield fake


@pytest.fixture
def request_(tmp_path: Path, podman: FakePodman) -> BuildRequest:
    (tmp_path / "work").mkdir()
    image_id = podman.add(NAME, {"containers.bootc": "1"})
    return BuildRequest(NAME, image_id, tmp_path / "work", tmp_path / "log", disk_size=4 * MIB)


def raw_in(argv: list[str]) -> Path:
    """The file that the container sees as /output/disk.raw."""
    (source,) = [word for word in argv if word.endswith(":/output")]
    return Path(source.removesuffix(":/output")) / "disk.raw"


def test_a_disk(request_: BuildRequest, podman: FakePodman) -> None:
    sizes: list[int] = []

    def run(argv: list[str], line: Callable[[str], None]) -> int:
        assert argv[-1] == "/output/disk.raw"
        sizes.append(raw_in(argv).stat().st_size)
        raw_in(argv).write_bytes(b"boot" * MIB)
        line("Installing image: x")
        return 0

    podman.on_run = run
    told: list[str] = []
    with events.listening(lambda e: told.append(e.text) if e.kind == "progress" else None):
        built = Bootc().build(request_)
    assert sizes == [4 * MIB]
    assert inspect_file(built.disk, "qcow2").virtual_size == 4 * MIB
    assert built.inputs == {}
    assert "Installing image: x" in told
    assert [path.name for path in request_.workdir.iterdir()] == ["disk.qcow2"]


def test_the_default_size(request_: BuildRequest, podman: FakePodman) -> None:
    sizes: list[int] = []

    def run(argv: list[str], _line: object) -> int:
        sizes.append(raw_in(argv).stat().st_size)
        return 1

    podman.on_run = run
    with pytest.raises(PoclabError):
        Bootc().build(replace(request_, disk_size=None))
    assert sizes == [10 * GIB]


def test_its_own_words(request_: BuildRequest, podman: FakePodman) -> None:
    def run(_argv: list[str], line: Callable[[str], None]) -> int:
        line("error: Installing to disk: No root filesystem specified")
        return 1

    podman.on_run = run
    with pytest.raises(PoclabError, match="bootc install failed") as caught:
        Bootc().build(request_)
    assert "No root filesystem specified" in caught.value.why
    assert "rootfs: ext4" in caught.value.fix
    assert list(request_.workdir.iterdir()) == []
    assert any(name.startswith("poclab-bootc-") for name in podman.removed)


def test_an_image_without_bootc(request_: BuildRequest, podman: FakePodman) -> None:
    del podman.files["usr/bin/bootc"]
    with pytest.raises(PoclabError, match="has no /usr/bin/bootc"):
        Bootc().build(request_)
    assert not [call for call in podman.calls if call[1] == "run"]


def test_debians_family_gets_composefs_and_systemd_boot(
    request_: BuildRequest, podman: FakePodman
) -> None:
    podman.files["usr/lib/os-release"] = b"ID=debian\n"
    seen: list[str] = []

    def run(argv: list[str], _line: object) -> int:
        seen.extend(argv)
        return 1

    podman.on_run = run
    with pytest.raises(PoclabError):
        Bootc().build(request_)
    assert "--composefs-backend --bootloader systemd --wipe" in " ".join(seen)


def test_what_is_given_is_not_given_twice() -> None:
    assert family_args(replace(DEBIAN, os_release="ID=fedora\n"), ()) == ()
    given = ("--bootloader=grub", "--wipe")
    assert family_args(DEBIAN, given) == ("--composefs-backend",)


@pytest.mark.parametrize(
    "more",
    [
        {"blueprint": Path("blueprint.toml")},
        {"builder_image": "x"},
        {"builder_args": ("--filesystem=xfs",)},
        {"builder_args": ("--via-loopback",)},
    ],
)
def test_requests_it_cannot_serve(request_: BuildRequest, more: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Bootc().check(replace(request_, **more))  # type: ignore[arg-type]


def test_a_login_that_bootc_cannot_make(request_: BuildRequest, podman: FakePodman) -> None:
    podman.on_run = lambda _argv, _line: 1
    warnings: list[str] = []

    def listen(event: events.Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    with events.listening(listen):
        for user in ("anna", "admin", "root", None):
            with pytest.raises(PoclabError):
                Bootc(user).build(request_)
    assert warnings == ["the image has no login anna, and bootc makes none"]
