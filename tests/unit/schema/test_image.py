"""Image files: what they mean, and every fault at its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclab.core import units
from poclab.core.errors import PoclabError, Problems, UsageError
from poclab.model.version import Profile
from poclab.schema import image as imagefile
from poclab.schema.image import ImageFile
from tests.unit.schema.test_lab import LEAVES, flow, keys_of

ROOT = Path(__file__).parents[3]
IMAGES = sorted(path.parent for path in (ROOT / "images").glob("*/image.yaml"))
SCHEMA: dict[str, Any] = imagefile.image_json_schema()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image's directory with a Containerfile."""
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "Containerfile").write_text("FROM scratch\n")
    return directory


def load(directory: Path, text: str) -> ImageFile:
    (directory / "image.yaml").write_text(text)
    return imagefile.load_image(directory)


def faults(directory: Path, text: str) -> list[str]:
    """The faults of an image file, without its name."""
    with pytest.raises(Problems) as caught:
        load(directory, text)
    file = directory / "image.yaml"
    assert caught.value.exit_code == 2
    assert caught.value.what.startswith(f"{file} is no valid image file (")
    return [row.removeprefix(f"{file}:") for row in caught.value.problems]


def test_an_empty_file_takes_what_is_there(image: Path) -> None:
    plain = ImageFile("shop", image, containerfile=image / "Containerfile")
    assert load(image, "# all defaults\n") == plain
    assert plain.builder == "auto"
    assert plain.rootfs == "ext4"
    assert plain.user == "root"
    assert plain.profile is Profile.LINUX


def test_a_full_file(image: Path) -> None:
    (image / "sub").mkdir()
    (image / "sub/File").write_text("FROM scratch\n")
    (image / "my.toml").write_text("")
    text = """\
description: a shop
builder: bootc-image-builder
containerfile: sub/File
build_args: {VERSION: "v-{tag}", N: 1.10}
rootfs: xfs
disk: 20GiB
kernel_args: [console=ttyS0, quiet]
profile: legacy
user: admin
blueprint: my.toml
builder_image: registry.example/bib@sha256:00
builder_args: [--log-level, debug]
"""
    loaded = load(image, text)
    assert loaded == ImageFile(
        name="shop",
        directory=image,
        description="a shop",
        builder="bootc-image-builder",
        containerfile=image / "sub/File",
        build_args={"VERSION": "v-{tag}", "N": "1.10"},
        rootfs="xfs",
        disk=20 * units.GIB,
        kernel_args=("console=ttyS0", "quiet"),
        profile=Profile.LEGACY,
        user="admin",
        blueprint=image / "my.toml",
        builder_image="registry.example/bib@sha256:00",
        builder_args=("--log-level", "debug"),
    )
    assert loaded.build_args_for("1.10") == {"VERSION": "v-1.10", "N": "1.10"}
    assert loaded.build_args["VERSION"] == "v-{tag}"


def test_a_container_in_place_of_a_containerfile(image: Path) -> None:
    loaded = load(image, "container: quay.io/fedora/fedora-bootc:43\n")
    assert loaded.container == "quay.io/fedora/fedora-bootc:43"
    assert loaded.containerfile is None


@pytest.mark.parametrize(
    "names", [["blueprint.toml", "config.toml"], ["config.toml"], ["config.json"]]
)
def test_a_blueprint_beside_is_found(image: Path, names: list[str]) -> None:
    for name in names:
        (image / name).write_text("")
    assert load(image, "").blueprint == image / names[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rootfs: zfs", "1:9: rootfs: must be one of ext4, xfs, btrfs, not 'zfs'; did you mean"),
        ("builder: bib", "1:10: builder: must be one of auto, image-builder, bootc-image-"),
        ("profile: mac", "1:10: profile: must be one of linux, windows, legacy, not 'mac'"),
        ("kernel_arg: [a]", "1:1: unknown key 'kernel_arg'; did you mean 'kernel_args'?"),
        ("kernel_args: a", "1:14: kernel_args: must be a list"),
        ("kernel_args: [a b]", "1:15: kernel_args[0]: must be one argument without white space"),
        ("kernel_args: ['']", "1:15: kernel_args[0]: must be one argument"),
        ('builder_args: ["a\\nb"]', "1:16: builder_args[0]: must be one argument"),
        ("disk: lots", "1:7: disk: 'lots' is no size"),
        ("disk: -1", "1:7: disk: '-1' is no size"),
        ("user: Root", "1:7: user: 'Root' is no user name"),
        ("build_args: {a-b: c}", "1:14: build_args.a-b: 'a-b' is no name of a build argument"),
        ("build_args: {a: [b]}", "1:17: build_args.a: must be one value, not a list"),
        ("build_args: [a]", "1:13: build_args: must be a mapping"),
        ("container: --all", "1:12: container: '--all' is no name of a container image"),
        ("builder_image: a b", "1:16: builder_image: 'a b' is no name of a container image"),
        ("container: a:b\ncontainerfile: Containerfile", "2:1: containerfile: cannot stand beside"),
        ("container: a:b\nbuild_args: {A: b}", "2:1: build_args: cannot stand beside container"),
        ("containerfile: ../x", "1:16: containerfile: must be a file in the image's directory"),
        ("containerfile: /etc/passwd", "1:16: containerfile: must be a file in the image's"),
        ("containerfile: a/../../x", "1:16: containerfile: must be a file in the image's"),
        ("containerfile: .", "1:16: containerfile: must be a file in the image's directory"),
        ("containerfile: none", "1:16: containerfile: 'none' is no file"),
        ("containerfile: sub", "1:16: containerfile: 'sub' is no file"),
        ("containerfile: [a]", "1:16: containerfile: must be one value, not a list"),
        ("containerfile:", "1:15: containerfile: has no value"),
        ("containerfile: out", "1:16: containerfile: 'out' leads out of the image's directory"),
        ("containerfile: dirout/x", "1:16: containerfile: 'dirout/x' leads out of the image's"),
        ("containerfile: circle", "1:16: containerfile: 'circle' is no file"),
        ("blueprint: out", "1:12: blueprint: 'out' leads out of the image's directory"),
        ("blueprint: " + "x" * 300, "1:12: blueprint: 'xxx"),
        ("rootfs: xfs\nrootfs: ext4", "2:1: the key 'rootfs' stands twice"),
        ("rootfs: !!str xfs", "1:9: rootfs: tags are not allowed"),
        ("- a", "1:1: must be a mapping"),
        ("a: [", "2:1: no valid YAML"),
    ],
)
def test_faults(image: Path, text: str, expected: str) -> None:
    (image / "sub").mkdir()
    (image / "out").symlink_to("/etc/passwd")
    (image / "dirout").symlink_to(image.parent)
    (image.parent / "x").write_text("")
    (image / "circle").symlink_to("circle")
    found = faults(image, text + "\n")
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_a_link_inside_is_fine(image: Path) -> None:
    (image / "other").symlink_to("Containerfile")
    assert load(image, "containerfile: other\n").containerfile == image / "other"


def test_a_containerfile_that_leads_out_is_refused_though_nobody_named_it(image: Path) -> None:
    (image / "Containerfile").unlink()
    (image / "Containerfile").symlink_to("/etc/passwd")
    assert faults(image, "rootfs: xfs\n") == [
        "1:1: 'Containerfile' leads out of the image's directory"
    ]


def test_nothing_to_build_from(image: Path) -> None:
    (image / "Containerfile").unlink()
    assert faults(image, "rootfs: xfs\n") == [
        "1:1: nothing to build from: there is no Containerfile and no key container"
    ]


def test_everything_in_one_go(image: Path) -> None:
    found = faults(image, "rootfs: zfs\ndisk: -1\ncontainerfile: none\nkernel: x\nuser: ''\n")
    assert [row.split(":")[0] for row in found] == ["1", "2", "3", "4", "5"]


def test_no_directory_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no image file"):
        imagefile.load_image(tmp_path / "none")
    with pytest.raises(UsageError, match="there is no image file"):
        imagefile.load_image(tmp_path)


def test_a_directory_whose_name_is_no_name(tmp_path: Path) -> None:
    directory = tmp_path / "My Shop"
    directory.mkdir()
    with pytest.raises(UsageError, match="'My Shop' is no image name"):
        load(directory, "container: a:b\n")


def test_the_current_directory_has_a_name(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image / "image.yaml").write_text("")
    monkeypatch.chdir(image)
    assert imagefile.load_image(Path()).name == "shop"


# --- examples, schema, manual -----------------------------------------------------------


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_of_the_project(path: Path) -> None:
    assert imagefile.load_image(path).name == path.name
    content = yaml.safe_load((path / "image.yaml").read_text()) or {}
    jsonschema.validate(content, SCHEMA, jsonschema.Draft202012Validator)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid({})
    assert validator.is_valid({"build_args": {"A": 1}, "kernel_args": ["a"], "disk": "1GiB"})
    wrong: list[object] = [
        {"x": 1}, {"rootfs": "zfs"}, {"build_args": {"a-b": "c"}}, {"disk": "x"}, [],
    ]  # fmt: skip
    for bad in wrong:
        assert not validator.is_valid(bad), bad
    assert "null" not in str(SCHEMA)


def test_the_manual_names_every_key() -> None:
    manual = (ROOT / "docs/image-file.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \|", manual, re.MULTILINE)
    assert sorted(rows) == sorted(keys_of(SCHEMA))


def test_the_examples_of_the_manual_are_valid(image: Path) -> None:
    manual = (ROOT / "docs/image-file.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", manual, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        assert load(image, example).containerfile


VALUES = st.sampled_from([*LEAVES, "Containerfile", "../x", "ext4", "image.yaml", "{a: b}"])
TEXTS = st.dictionaries(
    st.sampled_from([*sorted(keys_of(SCHEMA)), "x"]),
    st.one_of(VALUES, st.lists(VALUES, max_size=3)),
    max_size=8,
).map(flow)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(TEXTS, st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_is_an_image_or_a_message(image: Path, text: str) -> None:
    try:
        loaded = load(image, text)
    except PoclabError as error:
        rows = error.lines()
    else:
        rows = []
        assert loaded.name == "shop"
    assert all(row.isprintable() and len(row) < 2000 for row in rows), rows
