"""The commands that run the disk builders, as their documentation has them.

bootc-image-builder: README.md and main.go of osbuild/bootc-image-builder, and the binary of
that name that image-builder ships. image-builder: doc/ and cmd/image-builder of
osbuild/image-builder. bootc: bootc-install(8), bootc-install-to-disk(8). Nothing deprecated
(`--local`, `--tls-verify`) is passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poclab.builders.base import BuildRequest
from poclab.core.errors import UsageError
from poclab.core.plaintext import shown

# Where podman inside a builder looks for images, whatever the host's storage is called.
STORAGE = "/var/lib/containers/storage"
PRIVILEGED = ("--privileged", "--pull=never", "--security-opt", "label=type:unconfined_t")
RAW = "disk.raw"


@dataclass(frozen=True)
class Setup:
    """What a command needs beside the request.

    Attributes:
        output: the directory for the results.
        storage: root's container storage (podman's graph root).
        name: the container's name.
        program: the builder's container image; empty for a program of the host.
        config: the blueprint as JSON, or None.
        owner: who gets the output, `UID:GID`.
        root: whether the caller is root already; sudo goes before the command if not.
        progress: the value of `--progress`.
        clear_entrypoint: whether the image has an entrypoint that is in the way.
        root_size: the root's least size in bytes for image-builder, or None.
        family_args: what `bootc install to-disk` needs for this family of distributions.
    """

    output: Path
    storage: Path
    name: str = ""
    program: str = ""
    config: Path | None = None
    owner: str = "0:0"
    root: bool = True
    progress: str = "debug"
    clear_entrypoint: bool = False
    root_size: int | None = None
    family_args: tuple[str, ...] = ()


def bib(request: BuildRequest, setup: Setup) -> list[str]:
    """The command for bootc-image-builder, the archived one and the new one.

    Raises:
        UsageError: a directory's name cannot be mounted.
    """
    return [
        *_podman(setup, PRIVILEGED, _osbuild_volumes(setup)),
        setup.program,
        *("--type", request.output.bib, "--rootfs", request.rootfs),
        *("--chown", setup.owner, f"--progress={setup.progress}"),
        *(("--installer-payload-ref", request.image) if request.installer else ()),
        *request.builder_args,
        request.installer or request.image,
    ]


def image_builder(request: BuildRequest, setup: Setup) -> list[str]:
    """The command for image-builder, in its container or as a program of the host.

    Raises:
        UsageError: a directory's name cannot be mounted.
    """
    if setup.program:
        before = [*_podman(setup, PRIVILEGED, _osbuild_volumes(setup)), setup.program]
        config, output = "/config.json", "/output"
    else:
        before = [*_sudo(setup), "image-builder"]
        config, output = str(setup.config), str(setup.output)
    return [
        *before,
        *("build", request.output.image_builder),
        *("--bootc-ref", request.installer or request.image),
        *(("--bootc-installer-payload-ref", request.image) if request.installer else ()),
        *("--bootc-default-fs", request.rootfs),
        *(("--blueprint", config) if setup.config else ()),
        *(() if setup.root_size is None else ("--image-size", str(setup.root_size))),
        *("--output-dir", output, "--output-name", request.output.file),
        f"--progress={setup.progress}",
        *request.builder_args,
    ]


def bootc(request: BuildRequest, setup: Setup) -> list[str]:
    """The command for `bootc install to-disk`, run from the image itself.

    The file `disk.raw` in the output directory has to be there, as large as the disk.

    Raises:
        UsageError: a directory's name cannot be mounted.
    """
    volumes = ["/dev:/dev", *_storage(setup, STORAGE), f"{setup.output}:/output"]
    options = [*PRIVILEGED, "--pid=host", "--ipc=host"]
    options += ["--entrypoint", ""] if setup.clear_entrypoint else []
    return [
        *_podman(setup, options, volumes),
        request.image,
        *("bootc", "install", "to-disk", "--generic-image", "--via-loopback"),
        *("--filesystem", request.rootfs, *setup.family_args),
        *(word for arg in request.kernel_args for word in ("--karg", arg)),
        *request.builder_args,
        f"/output/{RAW}",
    ]


def _sudo(setup: Setup) -> list[str]:
    return [] if setup.root else ["sudo"]


def _podman(setup: Setup, options: tuple[str, ...] | list[str], volumes: list[str]) -> list[str]:
    for path in (setup.output, setup.storage, setup.config):
        if ":" in str(path or ""):
            raise UsageError(
                f"podman cannot mount {shown(str(path), 200)}", why="its path holds a colon"
            )
    return [
        *_sudo(setup),
        *("podman", "run", "--rm", "--name", setup.name, *options),
        *(word for volume in volumes for word in ("-v", volume)),
    ]


def _storage(setup: Setup, inside: str) -> list[str]:
    volumes = [f"{setup.storage}:{inside}"]
    if str(setup.storage) != inside:
        # podman's database in the storage names its own path; it has to be found there too.
        volumes.append(f"{setup.storage}:{setup.storage}")
    return volumes


def _osbuild_volumes(setup: Setup) -> list[str]:
    volumes = [f"{setup.output}:/output", *_storage(setup, STORAGE)]
    return volumes + ([f"{setup.config}:/config.json:ro"] if setup.config else [])
