"""The bootc-image-builder builder, without any container."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poclab import events
from poclab.builders import bib, bib_blueprint, bib_errors
from poclab.builders.base import BuildRequest
from poclab.builders.bib import BootcImageBuilder, Mounts
from poclab.builders.bib_progress import Lines
from poclab.builders.choose import builder_for
from poclab.container import ImageInfo
from poclab.errors import PoclabError, UsageError
from poclab.imagefile import load_image
from poclab.run import Result, using
from poclab.units import GIB, MIB
from tests.support.fake_podman import INITRAMFS, KERNEL, FakePodman

NAME = "localhost/poclab/web:v1"
BOOTC = {"containers.bootc": "1"}


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePodman]:
    monkeypatch.delenv("POCLAB_BIB_IMAGE", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with using(FakePodman()) as fake:
        assert isinstance(fake, FakePodman)
        yield fake


@pytest.fixture
def request_(tmp_path: Path, podman: FakePodman) -> BuildRequest:
    workdir = tmp_path / "work"
    workdir.mkdir()
    return BuildRequest(NAME, podman.add(NAME, BOOTC), workdir, tmp_path / "log")


# --- the command ------------------------------------------------------------------------

_HEAD = "podman run --rm --name poclab-bib-1 --privileged"
_SAFE = "--security-opt label=type:unconfined_t"
_STORE = "/var/lib/containers/storage"


def command(request: BuildRequest, mounts: Mounts, root: bool = True) -> str:
    return " ".join(bib.argv(request, mounts, name="poclab-bib-1", uid=0, gid=0, root=root))


def test_argv_of_the_contract(request_: BuildRequest) -> None:
    assert command(request_, Mounts(Path("/w/out"), Path(_STORE))) == (
        f"{_HEAD} --pull=newer {_SAFE} -v /w/out:/output -v {_STORE}:{_STORE} "
        "quay.io/centos-bootc/bootc-image-builder:latest "
        f"--type qcow2 --rootfs ext4 --chown 0:0 --progress=debug {NAME}"
    )


def test_argv_with_everything(request_: BuildRequest) -> None:
    request = replace(
        request_,
        rootfs="xfs",
        builder_image="mirror.example/bib:1",
        builder_args=("--log-level", "debug"),
    )
    mounts = Mounts(Path("/w/out"), Path("/srv/containers"), Path("/w/config.json"))
    argv = bib.argv(request, mounts, name="poclab-bib-1", uid=1000, gid=100, root=False)
    assert " ".join(argv) == (
        f"sudo {_HEAD} --pull=newer {_SAFE} -v /w/out:/output "
        f"-v /srv/containers:{_STORE} -v /srv/containers:/srv/containers "
        "-v /w/config.json:/config.json:ro mirror.example/bib:1 "
        "--type qcow2 --rootfs xfs --chown 1000:100 --progress=debug "
        f"--log-level debug {NAME}"
    )


@pytest.mark.parametrize("image", ["localhost/bib:latest", "a" * 64, "sha256:" + "b" * 64])
def test_local_builder_is_never_pulled(
    request_: BuildRequest, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    monkeypatch.setenv("POCLAB_BIB_IMAGE", image)
    argv = command(request_, Mounts(Path("/o"), Path(_STORE)))
    assert "--pull=never" in argv
    assert f" {image} --type" in argv


def test_no_deprecated_flags(request_: BuildRequest) -> None:
    argv = command(request_, Mounts(Path("/o"), Path(_STORE)))
    assert "--local" not in argv
    assert "--tls-verify" not in argv


def test_colon_in_path_is_refused(request_: BuildRequest) -> None:
    with pytest.raises(UsageError, match="cannot mount"):
        command(request_, Mounts(Path("/w:x/out"), Path(_STORE)))


@pytest.mark.parametrize(
    "arg", ["--local", "--tls-verify=false", "--type=raw", "--rootfs", "--chown=1:1", "-v"]
)
def test_arguments_that_are_poclabs_own(arg: str) -> None:
    with pytest.raises(UsageError, match=arg.partition("=")[0]):
        bib.check_args((arg,))


# --- the blueprint ----------------------------------------------------------------------


def blueprint_file(request: BuildRequest, text: str, name: str = "blueprint.toml") -> BuildRequest:
    path = request.workdir.parent / name
    path.write_text(text)
    return replace(request, blueprint=path)


def test_no_blueprint_when_there_is_nothing_to_say(request_: BuildRequest) -> None:
    assert bib_blueprint.merged(request_, None) == {}
    assert bib_blueprint.merged(replace(request_, disk_size=10 * GIB), None) == {}


def test_blueprint_is_merged(request_: BuildRequest) -> None:
    request = blueprint_file(
        replace(request_, kernel_args=("console=ttyS0", "quiet"), disk_size=20 * GIB),
        'name = "x"\n[customizations.kernel]\nappend = "nosmt"\n'
        '[[customizations.user]]\nname = "anna"\n'
        '[[customizations.filesystem]]\nmountpoint = "/var/data"\nminsize = "1 GiB"\n',
    )
    assert bib_blueprint.merged(request, "bob") == {
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
    merged = bib_blueprint.merged(request, "bob")
    assert merged["customizations"]["user"] == [{"name": "bob", "key": "k"}]


def test_size_of_a_laid_out_disk(request_: BuildRequest) -> None:
    request = blueprint_file(
        replace(request_, disk_size=20 * GIB), '[customizations.disk]\ntype = "gpt"\n'
    )
    merged = bib_blueprint.merged(request, None)
    assert merged["customizations"] == {"disk": {"type": "gpt", "minsize": 20 * GIB}}


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
        bib_blueprint.merged(request, None)


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
        bib_blueprint.merged(blueprint_file(request_, text, name), "bob")


def test_two_blueprints_are_refused(request_: BuildRequest) -> None:
    request = blueprint_file(request_, "")
    (request.workdir.parent / "blueprint.json").write_text("{}")
    with pytest.raises(UsageError, match="both there"):
        bib_blueprint.merged(request, None)


# --- what is looked at first ------------------------------------------------------------


@pytest.mark.parametrize("version", ["44", "9.6", "12"])
def test_version_ids_the_builder_takes(version: str) -> None:
    bib.check_os_release(f'ID=x\nVERSION_ID="{version}"\n')


@pytest.mark.parametrize(
    "text", ["", "ID=x", "ID=x\nVERSION_ID=", "ID=x\nVERSION_ID=1.2.3", "ID=x\nVERSION_ID=v1"]
)
def test_other_version_ids(text: str) -> None:
    with pytest.raises(PoclabError, match="os-release"):
        bib.check_os_release(text)


def runs(podman: FakePodman) -> list[list[str]]:
    return [call for call in podman.calls if call[1] == "run"]


def test_an_image_without_label_is_refused_first(tmp_path: Path, podman: FakePodman) -> None:
    request = BuildRequest(NAME, podman.add(NAME), tmp_path, tmp_path / "log")
    with pytest.raises(PoclabError, match="is not a bootc image"):
        BootcImageBuilder().build(request)
    assert runs(podman) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({KERNEL: None}, "has no kernel"),
        ({INITRAMFS: None}, "has no initramfs"),
        ({"usr/lib/modules/6.2/vmlinuz": b"MZ"}, "has 2 kernels"),
        ({"usr/lib/os-release": b"ID=debian\n"}, "VERSION_ID"),
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
        BootcImageBuilder().build(request_)
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
    built = BootcImageBuilder("bob").build(replace(request_, kernel_args=("quiet",)))
    assert built.disk == request_.workdir / "disk.qcow2"
    assert built.disk.read_bytes() == b"disk"
    assert seen["blueprint"] == {
        "customizations": {
            "kernel": {"append": "quiet"},
            "user": [{"name": "bob", "groups": ["wheel"]}],
        }
    }
    assert built.inputs["builder_image"] == bib.DEFAULT_IMAGE
    assert built.inputs["kernel_args"] == "quiet"
    assert not (request_.workdir / "bib-output").exists()
    assert any(re.match(r"poclab-bib-", name) for name in podman.removed)


@pytest.mark.parametrize("user", ["root", "admin", None])
def test_a_login_the_image_has_is_not_made(
    request_: BuildRequest, podman: FakePodman, user: str | None
) -> None:
    podman.on_run = lambda argv, _line: 1 if mounted(argv, "/config.json") else 7
    with pytest.raises(PoclabError, match="failed") as caught:
        BootcImageBuilder(user).build(request_)
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
        BootcImageBuilder().build(request_)
    if isinstance(caught.value, PoclabError):
        assert str(request_.log) in str(caught.value)
    assert not (request_.workdir / "bib-output").exists()
    assert not (request_.workdir / "disk.qcow2").exists()
    assert any(name.startswith("poclab-bib-") for name in podman.removed)


def test_a_killed_builds_output_is_removed(request_: BuildRequest, podman: FakePodman) -> None:
    dead = request_.workdir.parent / "staging.1/bib-output/qcow2"
    dead.mkdir(parents=True)
    used = request_.workdir.parent / "staging.2/bib-output"
    used.mkdir(parents=True)
    podman.on_run = lambda _argv, _line: 1
    with bib._in_use(used), pytest.raises(PoclabError):
        BootcImageBuilder().build(request_)
    assert not dead.parent.parent.exists()
    assert used.is_dir()


def test_sudo_that_refuses(podman: FakePodman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    podman.sudo = Result(("sudo",), 1, "", "sudo: a password is required")
    with pytest.raises(PoclabError, match="needs root") as caught:
        BootcImageBuilder().check()
    assert caught.value.why == "sudo: a password is required"
    assert "direct" in caught.value.fix


def test_sudo_for_podman_alone_is_enough(
    podman: FakePodman, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    BootcImageBuilder().check()
    assert podman.sudo_calls == [["sudo", "-n", "podman", "--version"]]


# --- what it prints ---------------------------------------------------------------------


def test_progress() -> None:
    seen: list[tuple[str, object, object]] = []

    def listen(event: events.Event) -> None:
        seen.append((event.text, event.data["done"], event.data["total"]))

    lines = Lines()
    with events.listening(listen):
        for text in (
            "Start progressbar",
            "pulse: Manifest generation step",
            "[1 / 4] Pipeline build",
            "  [3 / 9] org.osbuild.copy",
            "msg: copying",
            "",
            "error: first",
            "error: last: no space left on device",
            "Stop progressbar",
        ):
            lines.see(text)
    assert seen == [
        ("Manifest generation step", None, None),
        ("Pipeline build", 1.0, 4.0),
        ("org.osbuild.copy", 1.0, 4.0),
        ("copying", 1.0, 4.0),
    ]
    assert lines.error == "last: no space left on device"
    assert lines.tail == "Stop progressbar"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("this command must be run in rootful (not rootless) podman", "as root"),
        ("this command requires a privileged container", "privileged"),
        ("could not access container storage, did you forget -v /var/lib/...", "overlay"),
        ("failed to inspect the image: x, bib no longer pulls images", "image ls"),
        ("image x is not a bootc image (missing label)", "LABEL containers.bootc=1"),
        ("failed to initialize bootc distro: missing required info: DefaultRootFs", "rootfs:"),
        ("missing VERSION_ID in os-release", "VERSION_ID"),
        ("localhost/x does not resolve to an image ID", "overlay"),
        ("write /store/x: no space left on device", "make room"),
        ("cannot read config: unknown keys found: [x]", "blueprint"),
        ("unknown flag: --chown", "builder_args"),
        ("Command '['setfiles', '-F']' returned 1", "builder: direct"),
        ("initializing source docker://quay.io/x: dial tcp", "POCLAB_BIB_IMAGE"),
        ("something nobody has seen", "see the log"),
    ],
)
def test_error_texts(text: str, fix: str) -> None:
    error = bib_errors.explained(text, "tail", 1, Path("/l/build.log"), "img")
    assert fix in error.fix
    assert text[:400] in error.why
    assert "/l/build.log" in error.what


def test_podmans_own_failure_names_the_image() -> None:
    error = bib_errors.explained("", "no such file", 125, Path("/l"), "img:1")
    assert error.what == "podman could not run img:1 (log: /l)"
    assert error.why == "no such file"


# --- the choice -------------------------------------------------------------------------


def info(labels: dict[str, str]) -> ImageInfo:
    return ImageInfo("a" * 64, NAME, "", labels)


def test_named_builders(podman: FakePodman) -> None:
    assert builder_for("direct", info(BOOTC))[0].name == "direct"
    assert builder_for("bootc-image-builder", info({}))[0].name == "bootc-image-builder"
    with pytest.raises(UsageError, match="no builder"):
        builder_for("packer", info({}))


def test_auto(podman: FakePodman, monkeypatch: pytest.MonkeyPatch) -> None:
    assert builder_for("auto", info(BOOTC))[0].name == "bootc-image-builder"
    builder, reason = builder_for("auto", info({}))
    assert builder.name == "direct"
    assert "containers.bootc" in reason
    monkeypatch.setenv("POCLAB_BIB_IMAGE", "localhost/bib")
    builder, reason = builder_for("auto", info(BOOTC))
    assert builder.name == "direct"
    assert "localhost/bib" in reason
    podman.add("localhost/bib")
    assert builder_for("auto", info(BOOTC))[0].name == "bootc-image-builder"


def test_auto_without_root(podman: FakePodman, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(podman, "which", lambda program: None)
    builder, reason = builder_for("auto", info(BOOTC))
    assert builder.name == "direct"
    assert "sudo" in reason


# --- the example ------------------------------------------------------------------------


def test_the_example_on_fedora_bootc_is_a_valid_definition() -> None:
    image = load_image(Path(__file__).parents[2] / "images/fedora-web")
    assert image.builder == "bootc-image-builder"
    assert image.build_args_for("1.0") == {"VERSION": "1.0"}
    assert image.containerfile is not None
    assert "FROM quay.io/fedora/fedora-bootc:44\n" in image.containerfile.read_text()
    assert image.rootfs == "xfs"
