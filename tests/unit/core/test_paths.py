"""What poclab knows of its user."""

from __future__ import annotations

import os
from dataclasses import replace
from xml.etree.ElementTree import fromstring

import pytest

from poclab.core.paths import user_name
from poclab.definitions.metadata import text, vm_element, vm_record
from tests.support import make

VARIABLES = ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.mark.parametrize("variable", ["SUDO_USER", "LOGNAME"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ann", "ann"),
        ("DOMAIN\\Jörg Müller", "DOMAIN\\Jörg Müller"),
        ("\x1b[2Jann\x07", "?[2Jann?"),
        ("ann\nbob\r", "ann bob"),
        ("\x01\ufffe\udcff", "???"),
        ("x" * 5000, "x" * 64),
        ("]]><a b='&\"/>", "]]><a b='&\"/>"),
        (" \n ", str(os.getuid())),
    ],
)
def test_a_users_name_is_a_short_line_that_xml_can_hold(
    variable: str, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in VARIABLES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(variable, name)
    assert user_name() == expected
    record = make.record()
    record = replace(record, history=(replace(record.history[0], by=user_name()),))
    assert vm_record(fromstring(text(vm_element(record)))) == record
