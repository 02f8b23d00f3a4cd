"""The command line where no libvirt daemon is needed: usage, refusals, exit codes, start-up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from poclab import __version__
from poclab.cli.app import run
from poclab.definitions.domain import domain_spec
from poclab.definitions.profiles import HostTraits
from poclab.definitions.xml import domain_xml
from tests.support import make

LAB = """\
name: acme
vms:
  vm1:
    image: shop:v1
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


class Program:
    """poclab in this process, in an empty directory, with no daemon to talk to."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        """Run poclab."""
        argv, sys.argv = sys.argv, ["poclab", *arguments]
        try:
            run()
        except SystemExit as end:
            out, err = self._capsys.readouterr()
            return Ended(end.code if isinstance(end.code, int) else 1, out, err)
        finally:
            sys.argv = argv

    def files(self) -> set[str]:
        """All files below the directory."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    def write(self, name: str, text: str) -> str:
        """Write a file and return its path."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """poclab, with everything it could write below one directory."""
    for name in list(os.environ):
        if name.startswith(("POCLAB_", "LIBVIRT_")):
            monkeypatch.delenv(name)
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return Program(tmp_path, capsys)


@pytest.fixture
def uri(program: Program) -> str:
    """A host of libvirt's test driver that has one VM, acme/vm1."""
    xml = domain_xml(
        domain_spec(
            make.record(),
            HostTraits(session=False, kvm=False, owner="0"),
            uuid=None,
            bases=("base.x.qcow2",),
            path="/pool/{}".format,
            console_log=None,
        )
    )
    return f"test://{program.write('host.xml', f'<node>{xml}</node>')}"


def clean(ended: Ended) -> Ended:
    """The run, which must have shown no traceback and at most a few lines of error."""
    assert "Traceback" not in ended.err
    assert "poclab failed" not in ended.err
    assert 1 <= len(ended.err.splitlines()) <= 6, ended.err
    assert all(line.isprintable() for line in ended.err.splitlines()), ended.err
    return ended


# --- usage --------------------------------------------------------------------------------


def test_it_says_its_version(program: Program) -> None:
    assert program("--version") == Ended(0, f"poclab {__version__}\n", "")


def test_help_names_every_command(program: Program) -> None:
    ended = program("--help")
    assert ended.code == 0
    assert ended.err == ""
    commands = "up plan down status validate schema reset history ssh image doctor"
    assert set(commands.split()) <= set(ended.out.split())
    assert program("-h") == ended


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "plan",
        "down",
        "status",
        "validate",
        "schema",
        "reset",
        "history",
        "ssh",
        "image build",
    ],
)
def test_every_command_has_help(program: Program, command: str) -> None:
    ended = program(*command.split(), "--help")
    assert ended.code == 0
    assert "Usage:" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["image", "nonsense"],
        ["up"],
        ["validate"],
        ["--nonsense", "status"],
        ["--accel", "warp", "status"],
        ["status", "-o", "xml"],
        ["image", "build", "shop"],
        ["image", "import", "shop:v1"],
        ["image", "import", "shop:v1", "f", "--profile", "amiga"],
        ["reset"],
        ["reset", "--lab", "acme"],
        ["reset", "vm1", "--all", "--lab", "acme"],
        ["schema", "nonsense"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_2(program: Program, arguments: list[str]) -> None:
    before = program.files()
    ended = clean(program(*arguments))
    assert ended.code == 2
    assert ended.out == ""
    assert program.files() == before


def test_no_argument_at_all_shows_the_help(program: Program) -> None:
    ended = program()
    assert ended.code == 2
    assert "Usage:" in ended.out + ended.err


# --- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["up", "plan"])
def test_a_missing_lab_lists_the_labs(program: Program, command: str) -> None:
    for name in ("beta", "acme"):
        program.write(f"labs/{name}.yaml", LAB)
    ended = clean(program(command, "gamma"))
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "error: there is no lab 'gamma'",
        "why: labs/gamma.yaml is not there; labs/ has acme, beta",
        "fix: go to the directory that has labs/, or name it with -C, or give the file's path",
    ]


def test_a_missing_file_is_said(program: Program) -> None:
    ended = clean(program("up", "no/such.yaml"))
    assert ended.code == 2
    assert "no/such.yaml" in ended.err


def test_validate_tells_good_files(program: Program) -> None:
    files = [program.write(f"{name}.yaml", LAB) for name in ("a", "b")]
    ended = program("validate", *files)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines() == [f"{file}: lab acme, 1 VMs, no faults" for file in files]
    assert program("-q", "validate", *files) == Ended(0, "", "")


def test_validate_tells_all_faults_of_all_files(program: Program) -> None:
    good = program.write("good.yaml", LAB)
    one = program.write("one.yaml", LAB.replace("image", "imag") + "    memory: -1\n")
    two = program.write("two.yaml", "name: [\n")
    ended = program("validate", good, one, two, "missing.yaml")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    lines = ended.err.splitlines()
    assert any(line.startswith(f"{one}:4:") and "imag" in line for line in lines)
    assert any(line.startswith(f"{one}:5:") and "memory" in line for line in lines)
    assert any(line.startswith(f"{two}:") for line in lines)
    assert any("missing.yaml" in line for line in lines)
    assert lines[-1] == "3 of 4 files have faults"


@pytest.mark.parametrize("kind", [["schema"], ["schema", "lab"], ["schema", "image"]])
def test_the_schema_is_a_json_schema(program: Program, kind: list[str]) -> None:
    ended = program(*kind)
    assert (ended.code, ended.err) == (0, "")
    schema = json.loads(ended.out)
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    assert not validator(schema).is_valid({"nonsense": 1})


def test_the_lab_schema_takes_a_lab(program: Program) -> None:
    schema = json.loads(program("schema").out)
    jsonschema.validate({"name": "acme", "vms": {"vm1": {"image": "shop:v1"}}}, schema)


# --- names --------------------------------------------------------------------------------

BAD = {
    "up and out": "../x",
    "absolute": "/etc/x",
    "an option": "-rf",
    "markup": "a]]><x/>",
    "quotes": "\"&<'",
    "right to left": "a\N{RIGHT-TO-LEFT OVERRIDE}b",
    "homoglyph": "\N{CYRILLIC SMALL LETTER A}cme",
    "long": "a" * 300,
    "upper case": "Acme",
    "dot": ".",
    "dots": "..",
    "empty": "",
    "newline": "acme\n",
    "newline within": "ac\nme",
    "shell": "$(id)",
    "json": 'json:{"driver":"file"}',
    "nbd": "nbd://127.0.0.1:1/x",
    "escape": "\x1b[31mred",
    "nul": "a\0b",
    "surrogate": "a\udcff",
    "blank": "a b",
    "glob": "*",
    "digit first": "1a",
    "hyphen last": "a-",
}

COMMANDS = {
    "up": ["up", "{}"],
    "plan": ["plan", "{}"],
    "down": ["down", "{}", "--yes"],
    "status": ["status", "{}"],
    "validate": ["validate", "{}"],
    "schema": ["schema", "{}"],
    "reset vm": ["reset", "{}"],
    "reset lab/vm": ["reset", "{}/vm1"],
    "reset --lab": ["reset", "--all", "--lab", "{}"],
    "history": ["history", "{}"],
    "ssh": ["ssh", "{}", "--", "true"],
    "image build": ["image", "build", "{}", "--tag", "v1"],
    "image ls": ["image", "ls", "{}"],
    "image import": ["image", "import", "{}:v1", "host.xml"],
    "image import tagless": ["image", "import", "{}", "host.xml"],
    "image tag from": ["image", "tag", "{}:v1", "shop:v2"],
    "image tag to": ["image", "tag", "shop:v1", "{}:v2"],
    "image rm": ["image", "rm", "{}:v1", "--yes"],
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_bad_name_is_refused_and_nothing_made(
    program: Program, uri: str, command: list[str], bad: str
) -> None:
    before = program.files()
    ended = clean(program("-c", uri, *(part.replace("{}", bad) for part in command)))
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert program.files() == before


GOOD_TAGS = {"Acme", "1a", "a-"}
BAD_TAGS = [*set(BAD.values()) - GOOD_TAGS, ".x", "-", "a" * 129, "a/b"]


@pytest.mark.parametrize("bad", sorted(BAD_TAGS), ids=range(len(BAD_TAGS)))
@pytest.mark.parametrize(
    "command",
    [
        ["image", "build", "shop", "--tag={}"],
        ["image", "import", "shop:{}", "host.xml"],
        ["image", "tag", "shop:{}", "shop:v2"],
        ["image", "tag", "shop:v1", "shop:{}"],
        ["image", "rm", "shop:{}", "--yes"],
        ["reset", "acme/vm1", "--to={}"],
    ],
    ids=["build", "import", "tag from", "tag to", "rm", "reset"],
)
def test_a_bad_tag_is_refused_and_nothing_made(
    program: Program, uri: str, command: list[str], bad: str
) -> None:
    before = program.files()
    ended = clean(program("-c", uri, *(part.replace("{}", bad) for part in command)))
    assert ended.code == 2, ended.err
    assert program.files() == before


def test_a_good_name_that_is_not_there_is_exit_1(program: Program, uri: str) -> None:
    for arguments in (["history", "vm2"], ["reset", "acme/vm2"], ["reset", "--all", "--lab", "b"]):
        ended = clean(program("-c", uri, *arguments))
        assert ended.code == 1, ended.err


# --- hosts --------------------------------------------------------------------------------


def test_a_listing_of_a_host(program: Program, uri: str) -> None:
    ended = program("-c", uri, "history", "vm1", "-o", "json")
    assert (ended.code, ended.err) == (0, "")
    (entry,) = json.loads(ended.out)
    assert (entry["lab"], entry["vm"], entry["action"]) == ("acme", "vm1", "create")


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense",
        "nonsense:///x",
        "http://[::1",
        "qemu:///nonsense",
        "qemu+tcp://127.0.0.1:1/system",
        "qemu+unix:///system?socket=/nonexistent/socket",
        "qemu+nonsense:///system",
        "test:///nonexistent/host.xml",
        "-c",
        "a\nb",
        "qemu:///system\n",
        "x" * 5000,
        "qemu+ssh://\x1b[31mhost/system",
        "qemu+unix:///system?socket=/" + "y/" * 3000,
    ],
    ids=range(14),
)
def test_a_host_that_cannot_be_reached_is_three_lines(program: Program, uri: str) -> None:
    before = program.files()
    for command in (["status"], ["down", "acme"], ["image", "ls"], ["history", "vm1"]):
        ended = clean(program("-c", uri, *command))
        assert ended.code == 1
        what, why, fix = ended.err.splitlines()
        assert what.startswith("error: cannot connect to '")
        assert why.startswith("why: ")
        assert fix.startswith("fix: ")
        assert len(ended.err) < 1000
    assert program.files() == before


def test_without_a_daemon_the_command_that_starts_one_is_named(program: Program) -> None:
    uri = "qemu+unix:///system?socket=/nonexistent/socket"
    assert "fix: start libvirt: `systemctl start libvirtd`" in program("-c", uri, "status").err


def test_the_environment_names_the_host_too(
    program: Program, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "nonsense")
    assert "cannot connect to 'nonsense'" in program("history", "vm1").err
    monkeypatch.setenv("POCLAB_CONNECT", uri)
    assert program("history", "vm1").code == 0
    assert "cannot connect to 'other'" in program("-c", "other", "history", "vm1").err


# --- as a process -------------------------------------------------------------------------


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the shell's with poclab in it."""
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("command", ["schema", "--help", "--version"])
def test_a_reader_that_goes_away_is_no_error_worth_a_word(command: str, reader: str) -> None:
    ended = process("sh", "-c", f"{sys.executable} -m poclab {command} | {reader}")
    assert ended.stderr == ""
    assert ended.returncode == 0  # the reader's


HEAVY = (
    "libvirt", "pydantic", "rich", "yaml", "oslo_utils", "cryptography", "jsonschema", "tabulate",
)  # fmt: skip


@pytest.mark.parametrize("code", ["-m poclab --version", "-c 'import poclab.cli.app'"])
def test_starting_up_imports_nothing_heavy(code: str) -> None:
    ended = process("sh", "-c", f"{sys.executable} -X importtime {code}")
    assert ended.returncode == 0
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in ended.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert {"poclab", "typer"} <= imported
    assert not imported & set(HEAVY)


def test_verbose_says_where_an_error_comes_from_and_shows_nothing_a_terminal_acts_on(
    program: Program,
) -> None:
    ended = program("-v", "image", "build", "./no\x1b[2Jwhere", "--tag", "v1")
    assert ended.code == program("image", "build", "./nowhere", "--tag", "v1").code == 2
    assert "Traceback" in ended.err
    assert ended.err.replace("\n", "").isprintable()


def test_a_question_with_standard_input_closed_is_answered_as_in_a_script() -> None:
    ended = process("sh", "-c", f"exec {sys.executable} -m poclab image import a:b - <&-")
    assert "AttributeError" not in ended.stderr
    assert ended.returncode == 1


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    code = (
        "import os; from poclab.cli import app; app._open_streams();"
        f"print(os.open({str(tmp_path)!r}, os.O_RDONLY), file=open({str(tmp_path / 'n')!r}, 'w'))"
    )
    process("sh", "-c", f'exec {sys.executable} -c "{code}" <&- >&- 2>&-')
    assert int((tmp_path / "n").read_text()) > 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_are_closed(closed: str) -> None:
    ended = process("sh", "-c", f"exec {sys.executable} -m poclab --version {closed}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout == ("" if closed.startswith(">") else f"poclab {__version__}\n")
