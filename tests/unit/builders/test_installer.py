"""What an installer does by itself: its blueprint, and the kickstart in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.builders import installer
from poclab.builders.auto import for_iso
from poclab.builders.base import (
    ANACONDA_ISO,
    BOOTC_INSTALLER,
    GENERIC_ISO,
    QCOW2,
    BuildRequest,
    Output,
)
from poclab.builders.bootc import Bootc
from poclab.builders.direct import Direct
from poclab.builders.osbuild import BIB, IMAGE_BUILDER, check_output
from poclab.core.errors import UsageError
from poclab.core.units import GIB

REQUEST = BuildRequest("x", "a" * 64, Path("/w"), Path("/w/log"), output=ANACONDA_ISO)
WITH_USER: dict[str, Any] = {"user": [{"name": "anna", "key": "k"}]}


def with_blueprint(tmp_path: Path, custom: dict[str, Any], **more: Any) -> BuildRequest:
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"customizations": custom}))
    return replace(REQUEST, blueprint=path, **more)


def custom(request: BuildRequest, user: str | None = None) -> dict[str, Any]:
    found = installer.merged(request, user, BIB)["customizations"]
    assert isinstance(found, dict)
    return found


def test_customizations_of_the_iso_are_bootc_image_builders(tmp_path: Path) -> None:
    wish = {"iso": {"volume_id": "X"}}
    request = with_blueprint(tmp_path, wish)
    assert installer.merged(request, None, BIB)["customizations"]["iso"] == wish["iso"]
    request = replace(request, output=BOOTC_INSTALLER)
    with pytest.raises(UsageError, match=r"does not support customizations\.iso") as caught:
        installer.merged(request, None, IMAGE_BUILDER)
    assert caught.value.why == "only bootc-image-builder does"
    assert "--builder bootc-image-builder" in caught.value.fix


# --- who is asked -----------------------------------------------------------------------


def test_left_alone_it_asks_for_the_disk() -> None:
    contents = custom(REQUEST)["installer"]["kickstart"]["contents"]
    words = {line.split()[0] for line in contents.splitlines()}
    assert "lang" in words
    assert not words & {"clearpart", "zerombr", "autopart", "part", "reboot", "user", "rootpw"}


def test_kernel_arguments_reach_the_installed_system() -> None:
    request = replace(REQUEST, kernel_args=("console=ttyS0", "x='y z'"))
    assert custom(request)["kernel"] == {"append": "console=ttyS0 x='y z'"}
    contents = custom(request)["installer"]["kickstart"]["contents"]
    assert contents.splitlines()[-1] == ("""bootloader --append='console=ttyS0 x='"'"'y z'"'"''""")


def test_unattended() -> None:
    request = replace(REQUEST, unattended=True, kernel_args=("quiet",), disk_size=20 * GIB)
    # The size of a disk is no matter of an installer.
    assert custom(request, "bob") == {
        "installer": {"unattended": True},
        "kernel": {"append": "quiet"},
        "user": [{"name": "bob", "groups": ["wheel"]}],
    }


def test_unattended_as_the_blueprint_says(tmp_path: Path) -> None:
    request = with_blueprint(tmp_path, {"installer": {"unattended": True}} | WITH_USER)
    assert custom(request) == {"installer": {"unattended": True}} | WITH_USER


def test_a_kickstart_and_the_rest_of_the_blueprint(tmp_path: Path) -> None:
    modules = {"modules": {"enable": ["org.fedoraproject.Anaconda.Modules.Timezone"]}}
    request = with_blueprint(tmp_path, {"installer": modules, "fips": True}, kickstart="text\n")
    assert custom(request, "bob") == {
        "installer": modules | {"kickstart": {"contents": "text\n"}},
        "fips": True,
    }


def test_the_blueprints_own_kickstart(tmp_path: Path) -> None:
    settings = {"kickstart": {"contents": "text\n"}}
    assert custom(with_blueprint(tmp_path, {"installer": settings})) == {"installer": settings}
    with pytest.raises(UsageError, match="two kickstarts"):
        custom(with_blueprint(tmp_path, {"installer": settings}, kickstart="x\n"))


# --- contradictions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "beside",
    [WITH_USER, {"group": [{"name": "g"}]}, {"installer": {"sudo-nopasswd": ["anna"]}}],
)
@pytest.mark.parametrize("more", [{}, {"kickstart": "text\n"}])
def test_nothing_beside_a_kickstart(
    tmp_path: Path, beside: dict[str, Any], more: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="cannot be beside a kickstart") as caught:
        custom(with_blueprint(tmp_path, beside, **more))
    assert "--unattended" in caught.value.fix
    # An unattended one takes them.
    assert custom(with_blueprint(tmp_path, beside, unattended=True))["installer"]["unattended"]


def test_unattended_and_a_kickstart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes no kickstart"):
        custom(replace(REQUEST, unattended=True, kickstart="text\n"))
    with pytest.raises(UsageError, match="takes no kickstart"):
        custom(with_blueprint(tmp_path, {"installer": {"unattended": True}}, kickstart="text\n"))


@pytest.mark.parametrize("key", ["filesystem", "disk", "files", "ignition"])
def test_customizations_of_disks(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=f"customizations.{key}") as caught:
        custom(with_blueprint(tmp_path, {key: {}}))
    assert "for disks" in caught.value.why


@pytest.mark.parametrize(
    "more", [{"kickstart": "x\n"}, {"unattended": True}, {"blueprint": Path("b.toml")}]
)
def test_a_generic_iso_is_its_installers_alone(more: dict[str, Any]) -> None:
    request = replace(REQUEST, output=GENERIC_ISO, installer="i", kernel_args=("quiet",))
    assert installer.merged(request, "bob", IMAGE_BUILDER) == {}
    with pytest.raises(UsageError, match="takes no --") as caught:
        installer.merged(replace(request, **more), None, BIB)
    assert "bootc-installer" in caught.value.fix


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, False),
        ({"user": [{"name": "bob", "groups": ["wheel"]}]}, False),
        ({"user": [{"name": "bob"}, {"name": "root", "password": "x"}]}, True),
        (WITH_USER, True),
        ({"installer": {"kickstart": {"contents": ""}}}, True),
    ],
)
def test_who_can_log_in(found: dict[str, Any], expected: bool) -> None:
    assert installer.has_login({"customizations": found}) is expected


# --- kickstart files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\nautopart\n", None),
        ("# url --url=x\ntext\n", None),
        ("text\n  url --url=http://x/\n", (2, "url")),
        ("ostreecontainer --url=x\n", (1, "ostreecontainer")),
        ("text\n%packages\n@core\n%end\n", (2, "%packages")),
        ("%pre\nurl x\n%packages\n%end\nliveimg --url=x\n", (5, "liveimg")),
        ("%post --nochroot\nbootc switch x\n%end\n", None),
        ("%include /tmp/x\ncdrom\n", (2, "cdrom")),
        ("urls\n", None),
    ],
)
def test_lines_that_say_what_to_install(text: str, expected: tuple[int, str] | None) -> None:
    assert installer.source_line(text) == expected


LINES = st.lists(
    st.sampled_from(["text", "autopart", "%include x", "# url", ""]) | st.text("ab %#", max_size=9)
)


@given(before=LINES, script=st.lists(st.sampled_from(["url x", "%packages", "bootc", "cdrom"])))
def test_scripts_are_left_alone_and_commands_are_not(before: list[str], script: list[str]) -> None:
    lines = [line for line in before if not line.split() or line.split()[0][0] != "%"]
    text = "\n".join([*lines, "%pre", *script, "%end", ""])
    assert installer.source_line(text) is None
    found = installer.source_line(f"{text}nfs --server=x\n{text}")
    assert found == (text.count("\n") + 1, "nfs")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no kickstart file"),
        (b" \n\n", "no kickstart file"),
        (b"\xff\xfe", "no kickstart file"),
        (b"text\0\n", "no kickstart file"),
        (b"#" * (1024**2 + 1), "no kickstart file"),
        (b"text\nliveimg --url=x\n", "k.ks:2: 'liveimg' says what to install"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "k.ks"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=match):
        installer.read_kickstart(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        installer.read_kickstart(tmp_path / "none.ks")
    (tmp_path / "k.ks").write_text("text --non-interactive\nautopart\n")
    assert installer.read_kickstart(tmp_path / "k.ks") == "text --non-interactive\nautopart\n"


# --- who makes it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "builder", "image", "expected"),
    [
        (None, "auto", None, (ANACONDA_ISO, BIB)),
        (None, "auto", "i", (GENERIC_ISO, IMAGE_BUILDER)),
        (BOOTC_INSTALLER, "auto", "i", (BOOTC_INSTALLER, IMAGE_BUILDER)),
        (BOOTC_INSTALLER, BIB, "i", (BOOTC_INSTALLER, BIB)),
        (None, IMAGE_BUILDER, None, (ANACONDA_ISO, IMAGE_BUILDER)),
    ],
)
def test_the_builder(
    output: Output | None, builder: str, image: str | None, expected: tuple[Output, str]
) -> None:
    assert for_iso(output, builder, image) == expected


@pytest.mark.parametrize("name", ["direct", "bootc", "packer"])
def test_builders_that_make_none(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        for_iso(None, name, None)


def test_what_each_program_makes() -> None:
    wanted = replace(REQUEST, installer="i")
    check_output(REQUEST, BIB)
    check_output(replace(REQUEST, output=QCOW2), IMAGE_BUILDER)
    for name in (BIB, IMAGE_BUILDER):
        check_output(replace(wanted, output=BOOTC_INSTALLER), name)
    check_output(replace(wanted, output=GENERIC_ISO), IMAGE_BUILDER)
    with pytest.raises(UsageError, match="image-builder makes no anaconda-iso") as caught:
        check_output(REQUEST, IMAGE_BUILDER)
    assert caught.value.fix == "use --builder bootc-image-builder"
    with pytest.raises(UsageError, match="makes no bootc-generic-iso") as caught:
        check_output(replace(wanted, output=GENERIC_ISO), BIB)
    assert caught.value.fix == "use --builder image-builder"


def test_an_installer_that_is_missing_or_too_much() -> None:
    with pytest.raises(UsageError, match="needs an installer") as caught:
        check_output(replace(REQUEST, output=GENERIC_ISO), IMAGE_BUILDER)
    assert "--installer IMAGE" in caught.value.fix
    with pytest.raises(UsageError, match="takes no --installer"):
        check_output(replace(REQUEST, installer="i"), BIB)


@pytest.mark.parametrize("builder", [Direct(), Bootc()])
def test_builders_of_disks_refuse_installers(builder: Direct | Bootc) -> None:
    with pytest.raises(UsageError, match=f"{builder.name} makes no anaconda-iso"):
        builder.check(REQUEST)
