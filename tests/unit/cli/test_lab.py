"""What commands about labs make of how their work ended."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from poclab.cli import lab
from poclab.core.errors import PoclabError


def test_every_vm_that_failed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    failed = MappingProxyType({"web": PoclabError("no room"), "db": PoclabError("no disk")})
    with pytest.raises(PoclabError, match="lab acme is not fully up: db, web"):
        lab._fail("acme", failed)
    assert capsys.readouterr().err.splitlines() == ["error: no room", "error: no disk"]


def test_a_lab_without_failures_is_up() -> None:
    lab._fail("acme", {})
