"""Commands that are suggested: pasted into a shell they mean what was meant, or are not shown."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poclab.cli import output, tables
from poclab.cli.output import Format
from poclab.core import hints
from poclab.core.process import TooMuchOutput
from poclab.images import verify
from poclab.maintenance.doctor import Check
from poclab.model import volumes
from poclab.store import damaged
from tests.hostile import words
from tests.support import make

PACKAGE = Path(__file__).parents[3] / "poclab"
URI = "qemu+ssh://host/system?keyfile=/a b&no_verify=1"


def pasted(text: str, tmp_path: Path, shell: str = "sh") -> list[str]:
    """The words that a shell makes of a text."""
    script = f"set -- {text}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(
        [shell, "-c", script], capture_output=True, cwd=tmp_path, check=True, timeout=20
    )
    assert not list(tmp_path.iterdir())
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", words.SHOWN)
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_name_is_one_word_of_a_shell(shell: str, name: str, tmp_path: Path) -> None:
    text = hints.command("rm", "--", name)
    assert pasted(text, tmp_path, shell) == ["rm", "--", name]


@pytest.mark.parametrize("name", words.HIDDEN)
def test_what_a_terminal_would_change_is_not_shown(name: str) -> None:
    text = hints.command("rm", name)
    assert "rm" not in text
    assert "`poclab doctor`" in text
    assert hints.command("rm", name, otherwise="by hand") == "by hand"


@pytest.mark.parametrize("name", words.SHOWN)
def test_it_is_pasted_as_it_was_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By way of a table's cell and of an error's line."""
    text = hints.command("rm", name)
    output.listing([Check("a", "b", text)], tables.CHECKS, Format.TABLE, str)
    row = capsys.readouterr().out.splitlines()[1]
    assert pasted(row.partition("b")[2], tmp_path) == ["rm", name]
    output.tell(text)
    assert pasted(capsys.readouterr().err.rstrip("\n"), tmp_path) == ["rm", name]


@pytest.mark.parametrize("name", words.SHOWN)
def test_virsh_is_given_the_name_and_no_option(name: str, tmp_path: Path) -> None:
    found = pasted(volumes.removal(name, URI), tmp_path)
    assert found[:6] == ["virsh", "-c", URI, "vol-delete", "--pool", "poclab"]
    assert found[6:] == (["--", name] if name.startswith("-") else [name])


def host(names: list[str]) -> Any:
    """A stand-in: a host with damaged domains and networks of such names."""
    faults = dict.fromkeys(names, "format: expected a number")
    lists = {"vms": list, "networks": list}
    return cast(
        Any, SimpleNamespace(uri=URI, damaged_domains=faults, damaged_networks=faults, **lists)
    )


def test_damaged_domains_and_networks_are_removed_by_name(tmp_path: Path) -> None:
    names = [name for name in words.SHOWN if name]
    for item, name in zip(damaged.domains(host(names)), names, strict=True):
        found = pasted(item.fix.partition("domain: ")[2], tmp_path)
        assert found[:5] == ["virsh", "-c", URI, "undefine", "--nvram"]
        assert found[-1] == name
    for item, name in zip(damaged.networks(host(names)), names, strict=True):
        both = item.fix.partition("it: ")[2].replace("; virsh", '\nset -- "$@" virsh')
        found = pasted(both, tmp_path)
        assert [word for word in found if word.startswith("net-")] == [
            "net-destroy",
            "net-undefine",
        ]
        assert found.count(name) == 2


def test_what_has_no_name_to_show_is_removed_by_its_uuid() -> None:
    names = list(words.HIDDEN)
    for item in (*damaged.domains(host(names)), *damaged.networks(host(names))):
        assert "use its UUID in place of its name" in item.fix
        assert "list --all --uuid --name" in item.fix
        assert str(item).isprintable()


def test_every_damaged_record_is_whole_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of several in one cell are not cut either."""
    names = [f"{number:03}{'x' * 250}" for number in range(20)]
    text = " | ".join(map(str, damaged.networks(host(names))))
    output.listing([Check("records", "note", text)], tables.CHECKS, Format.TABLE, str)
    assert capsys.readouterr().out.splitlines()[1].endswith(text)


@pytest.mark.parametrize("name", words.SHOWN)
def test_an_imported_file_is_named_whole(name: str, tmp_path: Path) -> None:
    origin = replace(make.version().origin, kind="imported", source=name or "x")
    version = make.version(origin=origin)
    said = verify.advice(version, version.digest).partition("again: ")[2].rpartition("; or put")[0]
    # A file's name is not an option.
    assert (f"./{name}" if name.startswith("-") else name or "x") in pasted(said, tmp_path)


def test_a_long_command_is_not_cut() -> None:
    short, long = TooMuchOutput(["ssh", "a b"], 5), TooMuchOutput(["ssh", "x" * 5000], 5)
    assert short.fix == "see what it prints: ssh 'a b'"
    assert long.fix == "see what it prints: `poclab -v` shows the command"


# What has words to quote for other reasons: the log, commands of guests, a kickstart.
QUOTING = {
    "core/hints.py",
    "core/outcomes.py",
    "core/process.py",
    "guest/bootc.py",
    "guest/ssh.py",
    "builders/installer.py",
}
# A command in a message with something put into it by hand.
BY_HAND = re.compile(
    r"(?<!image )\b(virsh|rm|ls|chmod|chown|usermod|umount|swapoff|sudo)\b[^`;:]* \0"
)
CONSTANT = re.compile(r"(self\.)?_?[A-Z][A-Z_]*")


def test_no_command_is_put_together_elsewhere() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        nodes = [] if name in QUOTING else ast.walk(ast.parse(path.read_text()))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module == "shlex":
                found.append(f"{name}:{node.lineno}: shlex")
            if isinstance(node, ast.JoinedStr) and BY_HAND.search(_text(node)):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def _text(node: ast.JoinedStr) -> str:
    """A formatted string with NUL for each value except constants of the module."""
    parts = []
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        else:
            inner = ast.unparse(value.value) if isinstance(value, ast.FormattedValue) else ""
            parts.append("X" if CONSTANT.fullmatch(inner) else "\0")
    return "".join(parts)


def test_the_rule_catches() -> None:
    caught = ['f"remove it: rm {path}"', 'f"virsh -c {uri} start x"', 'f"run `chmod 7 {x}`"']
    passes = ['f"run `sudo {PROGRAM}`"', 'f"remove {path}"', 'f"rm: {path}"']
    for text, wrong in [(text, True) for text in caught] + [(text, False) for text in passes]:
        (node,) = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.JoinedStr)]
        assert bool(BY_HAND.search(_text(node))) is wrong, text


def test_quoting_is_shlexs() -> None:
    assert hints.command("a", "b c") == shlex.join(["a", "b c"])


@pytest.mark.parametrize(
    "name",
    ["3", " 3", "+3", "6f1c1f4e-9f7b-4f7e-8d0c-3d1d6c1f8a52", "6f1c1f4e9f7b4f7e8d0c3d1d6c1f8a52"],
)
def test_what_virsh_takes_for_another_things_id_is_not_suggested(name: str) -> None:
    said = hints.virsh("undefine", "--nvram", names=[name], uri=URI, otherwise="by its UUID")
    assert said == "by its UUID"
