"""The cache of this host's image-builder: `df` names it, `gc` says how to empty it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from poclab.builders import cache
from poclab.cli import context
from poclab.cli import disk_usage as commands
from poclab.cli.output import Format
from poclab.core.process import Runner, using
from poclab.maintenance import df, gc
from poclab.maintenance.df import SpaceRow


class Machine(Runner):
    """A host that has image-builder, or has not."""

    def __init__(self, *programs: str) -> None:
        self.programs = programs

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache as osbuild 191 keeps it, of 3 GiB."""
    made = tmp_path / "store"
    made.mkdir()
    (made / "cache.size").write_text(str(3 * 2**30))
    monkeypatch.setattr(cache, "STORE", made)
    with using(Machine("image-builder")):
        yield made


def test_the_cache_of_a_host_with_image_builder(store: Path) -> None:
    assert cache.look() == cache.Cache(store, 3 * 2**30)
    with using(Machine()):
        assert cache.look() is None


def test_a_host_where_nothing_was_built(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STORE", store / "none")
    assert cache.look() is None


@pytest.mark.parametrize(
    "text", [b"", b"x", b"-1", b"1e3", b"[]", b"\xff", b"9" * 40, b"true", b"1" * 10_000]
)
def test_a_size_that_cannot_be_read(store: Path, text: bytes) -> None:
    (store / "cache.size").write_bytes(text)
    assert cache.look() == cache.Cache(store, None)
    (store / "cache.size").unlink()
    assert cache.look() == cache.Cache(store, None)


def test_a_size_that_is_no_file(store: Path) -> None:
    (store / "cache.size").unlink()
    (store / "cache.size").symlink_to("/dev/zero")
    assert cache.look() == cache.Cache(store, None)


@pytest.fixture
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without anything of poclab's."""

    @contextmanager
    def nobody() -> Iterator[Any]:
        with nullcontext() as found:
            yield found

    rows = [SpaceRow(kind, "x", 0, 0, 0, 0) for kind in (df.GARBAGE, df.TOTAL)]
    monkeypatch.setattr(context, "host", nobody)
    monkeypatch.setattr(df, "space", lambda _host: rows)
    monkeypatch.setattr(gc, "look", lambda _host, _wish: [])


def test_df_names_it_and_gc_says_how_to_empty_it(
    store: Path, quiet_host: None, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.df(Format.TABLE)
    said = capsys.readouterr().err
    assert f"3 GiB more in image-builder's cache on this machine, {store}" in said
    assert "rm -r" not in said
    commands.gc(form=Format.TABLE)
    said = capsys.readouterr().err
    assert f"sudo rm -r {store}" in said
    assert store.is_dir()  # it is the user's to remove
    commands.df(Format.JSON)
    out, said = capsys.readouterr()
    assert "cache" not in out + said
    with using(Machine()):
        commands.df(Format.TABLE)
        commands.gc(form=Format.TABLE)
    assert "image-builder" not in capsys.readouterr().err


def test_a_cache_whose_size_is_not_known(
    store: Path, quiet_host: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "cache.size").unlink()
    commands.df(Format.TABLE)
    said = capsys.readouterr().err
    assert f"up to 20 GiB more in image-builder's cache on this machine, {store}" in said
