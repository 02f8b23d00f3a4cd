"""`poclab image import` on the command line: what it asks, and what it hands on."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poclab.cli import context, importing, output
from poclab.cli import image as commands
from poclab.core.errors import UsageError
from poclab.core.units import MIB
from poclab.disks.profile_guess import Guess
from poclab.images import import_disk, lifecycle
from poclab.model.version import Profile, Ref
from poclab.store.versions import Store
from tests.support.dirpool import DirectoryPool
from tests.support.disks import raw

GUESS = Guess(Profile.LINUX, "it has no partition table", sure=False)


class Typed(io.StringIO):
    """What somebody types at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "profile"),
    [
        ("windows\n", Profile.WINDOWS),
        (" Legacy \n", Profile.LEGACY),
        ("\n", Profile.LINUX),
        ("macos\n\nwindows\n", Profile.LINUX),
        ("macos\nwindows\n", Profile.WINDOWS),
        ("", Profile.LINUX),
        ("macos", Profile.LINUX),
    ],
)
def test_asks_for_a_profile(
    typed: str,
    profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", Typed(typed))
    monkeypatch.setattr(output, "interactive", lambda: True)
    choose = importing.chooser()
    assert choose is not None
    assert choose(GUESS) is profile
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "it has no partition table" in shown.err


def test_asks_nobody_who_cannot_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "interactive", lambda: False)
    assert importing.chooser() is None


def test_a_terminal_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Typed("x"))
    with pytest.raises(UsageError, match="is a terminal"):
        importing.source("-")
    assert importing.source("./-") == Path("-")


@pytest.mark.parametrize("text", ["", "much", "-1", "1e99"])
def test_a_limit_that_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--size-limit"):
        importing.size(text)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryPool:
    """A host whose pool is a directory."""
    for name in ("STATE", "CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    (tmp_path / "xdg").mkdir(mode=0o700)
    made = DirectoryPool(tmp_path / "pool")

    @contextmanager
    def host() -> Iterator[Any]:
        yield SimpleNamespace(pool=made, uri="test:///importing", settle=lambda: None)

    monkeypatch.setattr(context, "host", host)
    monkeypatch.setattr(lifecycle, "collect", lambda host: None)
    return made


def test_imports_a_file(
    pool: DirectoryPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.import_("box:v1", str(raw(tmp_path / "a.img")), user="admin")
    version = Store(pool, "test:///importing").get(Ref("box", "v1"))
    assert (version.profile, version.user) == (Profile.LEGACY, "admin")
    assert "box:v1 is stored" in capsys.readouterr().err


def test_imports_standard_input(
    pool: DirectoryPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw(tmp_path / "a.img").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        commands.import_("box:v1", "-", profile=Profile.WINDOWS, size_limit="8MiB")
    version = Store(pool, "test:///importing").get(Ref("box", "v1"))
    assert version.profile is Profile.WINDOWS
    assert version.virtual_size == 8 * MIB


@pytest.mark.parametrize("user", ["", "-oProxyCommand=x", "a\nb", "\x1b[31m", "x" * 300])
def test_a_user_who_cannot_be_one_is_refused_first(pool: DirectoryPool, user: str) -> None:
    request = import_disk.ImportRequest(Path("not there"), Profile.LINUX, user=user)
    with pytest.raises(UsageError, match="invalid user name"):
        import_disk.import_disk(Store(pool, "test:///importing"), Ref("a", "v1"), request)
