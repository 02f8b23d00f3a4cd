"""The builders on osbuild, without any container."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poclab.builders import blueprint, inspect, osbuild, privileged
from poclab.builders.base import ANACONDA_ISO, BOOTC_INSTALLER, GENERIC_ISO, BuildRequest
from poclab.builders.osbuild import BIB, IMAGE_BUILDER, Osbuild
from poclab.core import events
from poclab.core.errors import PoclabError, UsageError
from poclab.core.process import Result, using
from poclab.core.units import GIB, MIB
from poclab.schema.image import load_image
from tests.support.fake_podman import INITRAMFS, KERNEL, FakePodman

NAME = "localhost/poclab/web:v1"
BOOTC = {"containers.bootc": "1"}


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePodman]:
    monkeypatch.delenv("POCLAB_BIB_IMAGE", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with using(FakePodman()) as fake:
        assert isinstance(fake, FakePodman)
        fake.add(osbuild.BIB_IMAGE)
        fake.entrypoints[osbuild.BIB_IMAGE] = ["/usr/bin/bootc-image-builder"]
        yield fake


@pytest.fixture
def request_(tmp_path: Path, podman: FakePodman) -> BuildRequest:
    workdir = tmp_path / "work"
    workdir.mkdir()
    return BuildRequest(NAME, podman.add(NAME, BOOTC), workdir, tmp_path / "log")


# --- the blueprint ----------------------------------------------------------------------


def blueprint_file(request: BuildRequest, text: str, name: str = "blueprint.toml") -> BuildRequest:
    path = request.workdir.parent / name
    path.write_text(text)
    return replace(request, blueprint=path)


def test_no_blueprint_when_there_is_nothing_to_say(request_: BuildRequest) -> None:
    assert blueprint.merged(request_, None) == {}
    assert blueprint.merged(replace(request_, disk_size=10 * GIB), None) == {}


def test_blueprint_is_merged(request_: BuildRequest) -> None:
    request = blueprint_file(
        replace(request_, kernel_args=("console=ttyS0", "quiet"), disk_size=20 * GIB),
        'name = "x"\n[customizations.kernel]\nappend = "nosmt"\n'
        '[[customizations.user]]\nname = "anna"\n'
        '[[customizations.filesystem]]\nmountpoint = "/var/data"\nminsize = "1 GiB"\n',
    )
    merged = blueprint.merged(request, "bob")
    assert "minsize" not in str(merged["customizations"]["filesystem"][1:])
    assert blueprint.sized(merged, 20 * GIB) == {
        "name": "x",
        "customizations": {
            "kernel": {"append": "nosmt console=ttyS0 quiet"},
            "user": [{"name": "anna"}, {"name": "bob", "groups": ["wheel"]}],
            "filesystem": [
                {"mountpoint": "/var/data", "minsize": "1 GiB"},
                {"mountpoint": "/", "minsize": 20 * GIB - 1528 * MIB},
            ],
        },
    }


def test_user_of_the_blueprint_is_left_alone(request_: BuildRequest) -> None:
    text = json.dumps({"customizations": {"user": [{"name": "bob", "key": "k"}]}})
    request = blueprint_file(request_, text, "config.json")
    merged = blueprint.merged(request, "bob")
    assert merged["customizations"]["user"] == [{"name": "bob", "key": "k"}]


def test_size_of_a_laid_out_disk(request_: BuildRequest) -> None:
    request = blueprint_file(
        replace(request_, disk_size=20 * GIB), '[customizations.disk]\ntype = "gpt"\n'
    )
    merged = blueprint.merged(request, None)
    assert blueprint.lays_out(merged)
    sized = blueprint.sized(merged, 20 * GIB)
    assert sized["customizations"] == {"disk": {"type": "gpt", "minsize": 20 * GIB}}


@pytest.mark.parametrize(
    "text",
    [
        '[[customizations.filesystem]]\nmountpoint = "/"\nminsize = 1\n',
        "[customizations.disk]\nminsize = 1\n",
    ],
)
def test_size_twice_is_refused(request_: BuildRequest, text: str) -> None:
    request = blueprint_file(replace(request_, disk_size=20 * GIB), text)
    with pytest.raises(UsageError, match="set twice"):
        blueprint.merged(request, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "x = "),
        ("a.json", "[1]"),
        ("a.json", "{" * 100_000),
        ("a.toml", "d = 2026-01-01"),
        ("a.yaml", "a: 1"),
        ("a.toml", "customizations = 1"),
        ("a.json", '{"customizations": {"user": 1}}'),
    ],
)
def test_bad_blueprints(request_: BuildRequest, name: str, text: str) -> None:
    with pytest.raises(UsageError, match="blueprint"):
        blueprint.merged(blueprint_file(request_, text, name), "bob")


def test_two_blueprints_are_refused(request_: BuildRequest) -> None:
    request = blueprint_file(request_, "")
    (request.workdir.parent / "blueprint.json").write_text("{}")
    with pytest.raises(UsageError, match="both there"):
        blueprint.merged(request, None)


# --- what is looked at first ------------------------------------------------------------


@pytest.mark.parametrize("version", ["44", "9.6", "12"])
def test_version_ids_the_builder_takes(version: str) -> None:
    inspect.check_os_release(f'NAME=X\nID=x\nVERSION_ID="{version}"\n')


def test_a_distribution_without_a_name() -> None:
    with pytest.raises(PoclabError, match="has no NAME") as caught:
        inspect.check_os_release('ID=x\nVERSION_ID="44"\nPRETTY_NAME=X\n')
    assert "set NAME in /usr/lib/os-release" in caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NAME=X\nID=x",
        "NAME=X\nID=x\nVERSION_ID=",
        "NAME=X\nID=x\nVERSION_ID=1.2.3",
        "NAME=X\nID=x\nVERSION_ID=rolling",
    ],
)
def test_other_version_ids(text: str) -> None:
    with pytest.raises(PoclabError, match="os-release"):
        inspect.check_os_release(text)


def runs(podman: FakePodman) -> list[list[str]]:
    calls = [call for call in podman.calls if call[1] == "run"]
    return [call for call in calls if "version" not in call and call[-1] != "--help"]


def test_an_image_without_label_is_refused_first(tmp_path: Path, podman: FakePodman) -> None:
    request = BuildRequest(NAME, podman.add(NAME), tmp_path, tmp_path / "log")
    with pytest.raises(PoclabError, match="is not a bootc image"):
        Osbuild(BIB).build(request)
    assert runs(podman) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({KERNEL: None}, "has no kernel"),
        ({INITRAMFS: None}, "has no initramfs"),
        ({"usr/lib/modules/6.2/vmlinuz": b"MZ"}, "has 2 kernels"),
        ({"usr/lib/os-release": b"NAME=Debian\nID=debian\n"}, "VERSION_ID"),
        ({"usr/lib/os-release": b"ID=fedora\nVERSION_ID=44\n"}, "NAME"),
    ],
)
def test_what_cannot_boot_is_refused_before_the_builder_runs(
    request_: BuildRequest, podman: FakePodman, change: dict[str, bytes | None], text: str
) -> None:
    for name, data in change.items():
        podman.files.pop(name, None)
        if data is not None:
            podman.files[name] = data
    with pytest.raises(PoclabError, match=text):
        Osbuild(BIB).build(request_)
    assert runs(podman) == []
    assert list(request_.workdir.iterdir()) == []


# --- the run ----------------------------------------------------------------------------


def mounted(argv: list[str], target: str) -> Path | None:
    for word in argv:
        source, _, where = word.partition(":")
        if where.partition(":")[0] == target:
            return Path(source)
    return None


def test_build_takes_the_disk(request_: BuildRequest, podman: FakePodman) -> None:
    seen: dict[str, object] = {}

    def run(argv: list[str], line: object) -> int:
        output, config = mounted(argv, "/output"), mounted(argv, "/config.json")
        assert output is not None
        assert config is not None
        seen["blueprint"] = json.loads(config.read_text())
        (output / "qcow2").mkdir()
        (output / "qcow2/disk.qcow2").write_bytes(b"disk")
        return 0

    podman.on_run = run
    built = Osbuild(BIB, "bob").build(replace(request_, kernel_args=("quiet",)))
    assert built.disk == request_.workdir / "disk.qcow2"
    assert built.disk.read_bytes() == b"disk"
    assert seen["blueprint"] == {
        "customizations": {
            "kernel": {"append": "quiet"},
            "user": [{"name": "bob", "groups": ["wheel"]}],
        }
    }
    assert built.inputs["builder_image"] == osbuild.BIB_IMAGE
    assert built.inputs["builder_digest"] == podman.digest(osbuild.BIB_IMAGE)
    assert built.inputs["program"] == BIB
    assert not (request_.workdir / "builder-output").exists()
    assert any(re.match(r"poclab-osbuild-", name) for name in podman.removed)


def test_build_takes_the_iso(request_: BuildRequest, podman: FakePodman) -> None:
    podman.add("installer:1", BOOTC)
    podman.add(osbuild.IMAGE_BUILDER_IMAGE)
    podman.entrypoints[osbuild.IMAGE_BUILDER_IMAGE] = ["/usr/bin/image-builder"]

    def run(argv: list[str], _line: object) -> int:
        output = mounted(argv, "/output")
        assert output is not None
        iso = output / ("bootiso/install.iso" if "--type" in argv else "install.iso")
        iso.parent.mkdir(exist_ok=True)
        iso.write_bytes(" ".join(argv[argv.index("-v") :]).encode())
        return 0

    podman.on_run = run
    for name, output in ((BIB, ANACONDA_ISO), (IMAGE_BUILDER, GENERIC_ISO), (BIB, BOOTC_INSTALLER)):
        installer = "installer:1" if output.installer else None
        built = Osbuild(name).build(replace(request_, output=output, installer=installer))
        assert built.disk == request_.workdir / "install.iso"
        assert f" {output.name} " in built.disk.read_text()
        assert ("installer:1" in built.disk.read_text()) is output.installer
        built.disk.unlink()


def test_an_installer_that_cannot_be_one(request_: BuildRequest, podman: FakePodman) -> None:
    request = replace(request_, output=GENERIC_ISO, installer="installer:1")
    with pytest.raises(PoclabError, match="no container image 'installer:1'"):
        Osbuild(IMAGE_BUILDER).build(request)
    podman.add("installer:1")
    with pytest.raises(PoclabError, match="'installer:1' is not a bootc image"):
        Osbuild(IMAGE_BUILDER).build(request)
    assert runs(podman) == []


def test_an_unattended_installer_without_a_login(
    request_: BuildRequest, podman: FakePodman
) -> None:
    podman.on_run = lambda _argv, _line: 1
    warnings: list[str] = []

    def listen(event: events.Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    with events.listening(listen), pytest.raises(PoclabError, match="failed"):
        Osbuild(BIB, "bob").build(replace(request_, output=ANACONDA_ISO))
    assert warnings == []
    with events.listening(listen), pytest.raises(PoclabError, match="failed"):
        Osbuild(BIB, "bob").build(replace(request_, output=ANACONDA_ISO, unattended=True))
    (warning,) = warnings
    assert "nobody is given a password or a key" in warning


@pytest.mark.parametrize("user", ["root", "admin", None])
def test_a_login_the_image_has_is_not_made(
    request_: BuildRequest, podman: FakePodman, user: str | None
) -> None:
    podman.on_run = lambda argv, _line: 1 if mounted(argv, "/config.json") else 7
    with pytest.raises(PoclabError, match="failed") as caught:
        Osbuild(BIB, user).build(request_)
    assert caught.value.why == "exit status 7"


@pytest.mark.parametrize("ending", ["error", "interrupt", "nothing"])
def test_a_failed_run_leaves_nothing(
    request_: BuildRequest, podman: FakePodman, ending: str
) -> None:
    def run(argv: list[str], line: object) -> int:
        output = mounted(argv, "/output")
        assert output is not None
        (output / "half").mkdir()
        (output / "half/file").write_bytes(b"x")
        if ending == "interrupt":
            raise KeyboardInterrupt
        return 1 if ending == "error" else 0

    podman.on_run = run
    expected: type[BaseException] = KeyboardInterrupt if ending == "interrupt" else PoclabError
    with pytest.raises(expected) as caught:
        Osbuild(BIB).build(request_)
    if isinstance(caught.value, PoclabError):
        assert str(request_.log) in str(caught.value)
    assert not (request_.workdir / "builder-output").exists()
    assert not (request_.workdir / "disk.qcow2").exists()
    assert any(name.startswith("poclab-osbuild-") for name in podman.removed)


def test_a_killed_builds_output_is_removed(request_: BuildRequest, podman: FakePodman) -> None:
    dead = request_.workdir.parent / "staging.1/builder-output/qcow2"
    dead.mkdir(parents=True)
    used = request_.workdir.parent / "staging.2/builder-output"
    used.mkdir(parents=True)
    podman.on_run = lambda _argv, _line: 1
    with privileged.in_use(used), pytest.raises(PoclabError):
        Osbuild(BIB).build(request_)
    assert not dead.parent.parent.exists()
    assert used.is_dir()


def test_sudo_that_refuses(
    request_: BuildRequest, podman: FakePodman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    podman.sudo = Result(("sudo",), 1, "", "sudo: a password is required")
    with pytest.raises(PoclabError, match="needs root") as caught:
        Osbuild(BIB).check(request_)
    assert caught.value.why == "sudo: a password is required"
    assert "direct" in caught.value.fix


def test_sudo_for_podman_alone_is_enough(
    request_: BuildRequest, podman: FakePodman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    Osbuild(BIB).check(request_)
    assert podman.sudo_calls == [["sudo", "-n", "podman", "--version"]]


# --- which program it is ----------------------------------------------------------------

JSON = json.dumps({"image-builder": {"version": "76", "commit": "a1f3508"}}, indent=2)
YAML = 'image-builder:\n  version: "54"\n  commit: a1f3508\n'
BIB_TEXT = "build_revision: a1f3508\nbuild_time: 2026-08-21T17:16:19Z\nbuild_tainted: false\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (JSON, (IMAGE_BUILDER, "76")),
        (YAML, (IMAGE_BUILDER, "54")),
        (BIB_TEXT, (BIB, "a1f3508")),
        ("1.2.3", ("", "")),
        ("", ("", "")),
    ],
)
def test_version_texts(text: str, told: tuple[str, str]) -> None:
    assert osbuild.told_version(text) == told


@pytest.mark.parametrize(
    ("entrypoint", "text", "kind", "form"),
    [
        # The archived one and the new one of the same name; one text, one contract.
        ("/usr/bin/bootc-image-builder", BIB_TEXT, BIB, "debug"),
        ("/usr/bin/bootc-image-builder", "", BIB, "debug"),
        ("/usr/bin/image-builder", JSON, IMAGE_BUILDER, "file"),
        ("/usr/bin/image-builder", YAML, IMAGE_BUILDER, "debug"),
        ("/usr/bin/image-builder", "", IMAGE_BUILDER, "debug"),
        ("/entrypoint.sh", JSON, IMAGE_BUILDER, "file"),
        ("/entrypoint.sh", BIB_TEXT, BIB, "debug"),
    ],
)
def test_an_image_is_asked_what_it_is(
    podman: FakePodman, entrypoint: str, text: str, kind: str, form: str
) -> None:
    podman.add("mirror.example/any:1")
    podman.entrypoints["mirror.example/any:1"] = [entrypoint]
    podman.versions["mirror.example/any:1"] = text
    program = osbuild.probe("mirror.example/any:1")
    assert program.kind == kind
    assert osbuild.progress_form(program) == form


def test_an_image_that_is_no_builder(podman: FakePodman) -> None:
    podman.add("x")
    podman.entrypoints["x"] = ["/bin/sh"]
    with pytest.raises(PoclabError, match="no disk builder") as caught:
        osbuild.probe("x")
    assert "/bin/sh" in caught.value.why


def test_an_image_with_the_other_program_is_run_as_what_it_is(
    request_: BuildRequest, podman: FakePodman
) -> None:
    podman.entrypoints[osbuild.BIB_IMAGE] = ["/usr/bin/image-builder"]
    podman.versions[osbuild.BIB_IMAGE] = JSON
    seen: list[str] = []

    def run(argv: list[str], _line: object) -> int:
        seen.extend(argv)
        output = mounted(argv, "/output")
        assert output is not None
        (output / "disk.qcow2").write_bytes(b"disk")
        return 0

    podman.on_run = run
    built = Osbuild(BIB).build(request_)
    assert built.disk.read_bytes() == b"disk"
    assert built.inputs["program"] == IMAGE_BUILDER
    assert built.inputs["program_version"] == "76"
    assert seen[seen.index(osbuild.BIB_IMAGE) + 1 :][:2] == ["build", "qcow2"]


def test_image_builder_of_the_host(request_: BuildRequest, podman: FakePodman) -> None:
    podman.missing.clear()
    podman.host["image-builder"] = JSON
    builder = Osbuild(IMAGE_BUILDER)
    assert builder.inputs(request_)["builder_version"] == "76"
    with pytest.raises(PoclabError, match=r"image-builder left no disk.qcow2"):
        builder.build(request_)
    assert not [call for call in podman.calls if call[1] == "pull"]


# --- the disk's size --------------------------------------------------------------------

# Of image-builder 79.0.0, in part, and of one before 75.
NEW_HELP = """\
Flags:
      --blueprint string     filename of a blueprint to customize an image
      --image-size size      override the default image size (e.g. 1 GiB)
"""
OLD_HELP = "Flags:\n      --blueprint string    filename of a blueprint, see also --image-size\n"
LARGE = 20 * GIB


@pytest.fixture
def image_builder(podman: FakePodman) -> FakePodman:
    """A podman with image-builder in it, which makes disks."""
    name = osbuild.IMAGE_BUILDER_IMAGE
    podman.add(name)
    podman.entrypoints[name] = ["/usr/bin/image-builder"]
    podman.versions[name] = json.dumps({"image-builder": {"version": "1"}})
    podman.helps[name] = NEW_HELP

    def run(argv: list[str], _line: object) -> int:
        output = mounted(argv, "/output")
        assert output is not None
        disk = output / ("qcow2/disk.qcow2" if "--type" in argv else "disk.qcow2")
        disk.parent.mkdir(exist_ok=True)
        disk.write_bytes(b"disk")
        return 0

    podman.on_run = run
    return podman


def test_image_builder_is_told_the_least_size_of_the_root(
    request_: BuildRequest, image_builder: FakePodman
) -> None:
    Osbuild(IMAGE_BUILDER).build(replace(request_, disk_size=LARGE))
    (argv,) = runs(image_builder)
    assert argv[argv.index("--image-size") + 1] == str(20 * GIB - 1528 * MIB)
    # It refuses customizations.filesystem: there is no blueprint at all.
    assert mounted(argv, "/config.json") is None


def test_a_disk_of_the_usual_size_needs_no_question(
    request_: BuildRequest, image_builder: FakePodman
) -> None:
    Osbuild(IMAGE_BUILDER).build(replace(request_, disk_size=10 * GIB))
    (argv,) = runs(image_builder)
    assert "--image-size" not in argv
    assert not [call for call in image_builder.calls if call[-1] == "--help"]


def test_a_laid_out_disk_has_its_size_in_the_blueprint(
    request_: BuildRequest, image_builder: FakePodman
) -> None:
    request = blueprint_file(
        replace(request_, disk_size=LARGE), '[customizations.disk]\ntype = "gpt"\n'
    )
    Osbuild(IMAGE_BUILDER).build(request)
    (argv,) = runs(image_builder)
    assert "--image-size" not in argv
    text = (request_.workdir / "blueprint.json").read_text()
    assert json.loads(text)["customizations"]["disk"]["minsize"] == LARGE


def test_bootc_image_builder_gets_the_size_in_the_blueprint(
    request_: BuildRequest, image_builder: FakePodman
) -> None:
    Osbuild(BIB).build(replace(request_, disk_size=LARGE))
    (argv,) = runs(image_builder)
    assert "--image-size" not in argv
    text = (request_.workdir / "blueprint.json").read_text()
    root = {"mountpoint": "/", "minsize": 20 * GIB - 1528 * MIB}
    assert json.loads(text)["customizations"]["filesystem"] == [root]


@pytest.mark.parametrize("where", ["container", "host"])
def test_an_older_image_builder_is_refused_before_minutes_are_spent(
    request_: BuildRequest, image_builder: FakePodman, where: str
) -> None:
    image_builder.helps[osbuild.IMAGE_BUILDER_IMAGE] = OLD_HELP
    if where == "host":
        image_builder.missing.clear()
        image_builder.host["image-builder"] = JSON
        image_builder.helps["image-builder"] = OLD_HELP
    with pytest.raises(PoclabError, match="cannot make a disk above 10 GiB") as caught:
        Osbuild(IMAGE_BUILDER).build(replace(request_, disk_size=LARGE))
    assert "--image-size" in caught.value.why
    assert "--builder bootc-image-builder" in caught.value.fix
    assert "75" in caught.value.fix
    assert runs(image_builder) == []
    assert not [call for call in image_builder.calls if call[1] == "save"]


def test_image_builder_of_the_host_is_asked(
    request_: BuildRequest, image_builder: FakePodman
) -> None:
    image_builder.missing.clear()
    image_builder.host["image-builder"] = JSON
    image_builder.helps["image-builder"] = NEW_HELP
    with pytest.raises(PoclabError, match="image-builder left no disk"):
        Osbuild(IMAGE_BUILDER).build(replace(request_, disk_size=LARGE))


def test_a_size_in_builder_args_too(request_: BuildRequest, podman: FakePodman) -> None:
    request = replace(request_, builder_args=("--image-size=99",))
    Osbuild(IMAGE_BUILDER).check(request)
    with pytest.raises(UsageError, match="set twice"):
        Osbuild(IMAGE_BUILDER).check(replace(request, disk_size=LARGE))


# --- fetching it ------------------------------------------------------------------------


def test_the_newest_builder_is_fetched(request_: BuildRequest, podman: FakePodman) -> None:
    builder = Osbuild(IMAGE_BUILDER)
    assert "builder_digest" not in builder.inputs(request_)
    podman.registry.add(osbuild.IMAGE_BUILDER_IMAGE)
    podman.on_run = lambda _argv, _line: 1
    podman.versions[osbuild.IMAGE_BUILDER_IMAGE] = JSON
    with pytest.raises(PoclabError, match="image-builder failed"):
        builder.build(request_)
    inputs = builder.inputs(request_)
    assert inputs["builder_digest"] == podman.digest(osbuild.IMAGE_BUILDER_IMAGE)


@pytest.mark.parametrize("image", ["localhost/bib:latest", "a" * 64, "sha256:" + "b" * 64])
def test_a_local_builder_is_never_pulled(
    request_: BuildRequest, podman: FakePodman, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    monkeypatch.setenv(osbuild.BIB_VARIABLE, image)
    with pytest.raises(PoclabError, match="could not run") as caught:
        Osbuild(BIB).build(request_)
    assert image in caught.value.why
    assert not [call for call in podman.calls if call[1] == "pull"]


def test_without_a_registry_the_builder_that_is_there_does(
    request_: BuildRequest, podman: FakePodman
) -> None:
    podman.on_run = lambda _argv, _line: 1
    with pytest.raises(PoclabError, match="bootc-image-builder failed"):
        Osbuild(BIB).build(request_)
    assert [call for call in podman.calls if call[1] == "pull"]


# --- what decides -----------------------------------------------------------------------


def test_a_blueprint_is_an_input_by_what_it_says(request_: BuildRequest) -> None:
    builder = Osbuild(BIB)
    assert "blueprint" not in builder.inputs(request_)
    first = builder.inputs(blueprint_file(request_, 'name = "x"\n'))["blueprint"]
    assert builder.inputs(blueprint_file(request_, '# a word\nname="x"'))["blueprint"] == first
    assert builder.inputs(blueprint_file(request_, 'name = "y"\n'))["blueprint"] != first


# --- the example ------------------------------------------------------------------------


def test_the_example_on_fedora_bootc_is_a_valid_definition() -> None:
    image = load_image(Path(__file__).parents[3] / "images/fedora-web")
    assert image.builder == "bootc-image-builder"
    assert image.build_args_for("1.0") == {"VERSION": "1.0"}
    assert image.containerfile is not None
    assert "FROM quay.io/fedora/fedora-bootc:44\n" in image.containerfile.read_text()
    assert image.rootfs == "xfs"
