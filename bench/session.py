"""A qemu:///session of its own, and a lab on it whose VMs have no operating system."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import results
from bench.measure import output
from tests.support import accounts

URI = "qemu:///session"
LAB = "bench"
IMAGE = "empty"
# Two disks of different size, so that the versions have different digests.
VERSIONS = {"v1": "64M", "v2": "65M"}
_INSIDE = "POCLAB_BENCH_INSIDE"


def inside() -> bool:
    """Whether this process runs in directories made by `again`."""
    return bool(os.environ.get(_INSIDE))


def again(arguments: Sequence[str]) -> int:
    """Run the program again as an ordinary user with private directories.

    Root has no session, and nobody's own session should be measured, or hold the bench's VMs.
    """
    settings = {_INSIDE: "1", "POCLAB_CONNECT": URI, "LIBVIRT_DEFAULT_URI": URI}
    settings[results.FILE] = os.environ[results.FILE]
    with accounts.place(accounts.ordinary(), settings) as place:
        install = place.installation
        if not (install.checkout / "bench").is_dir():
            _copy_here(install.checkout / "bench")
        command = place.argv(install.python, "-m", "bench", *arguments)
        return subprocess.run(command, check=False).returncode


def _copy_here(target: Path) -> None:
    """Add the bench to a copy of the checkout, which is made without it."""
    shutil.copytree(Path(__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def keep_bytecode() -> None:
    """Have Python keep compiled modules for every command that is measured.

    Otherwise a checkout that this user cannot write would be compiled anew in each run.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = f"{os.environ['XDG_CACHE_HOME']}/bytecode"


def poclab() -> list[str]:
    """How to run poclab as its user does: the installed program, else the module."""
    program = Path(sysconfig.get_path("scripts")) / "poclab"
    return [str(program)] if os.access(program, os.X_OK) else [sys.executable, "-m", "poclab"]


@contextmanager
def daemon() -> Iterator[None]:
    """Have the session's libvirtd run all the time: it ends when nobody has used it a while."""
    from poclab.virt.host import connect

    with connect(URI):
        yield


@contextmanager
def lab(names: Sequence[str], *, profile: str) -> Iterator[None]:
    """Bring a lab of VMs up that have an empty disk, and take it down."""
    with tempfile.TemporaryDirectory() as directory:
        _import_versions(Path(directory), profile)
        file = Path(directory) / f"{LAB}.yaml"
        file.write_text(_lab_file(names))
        output([*poclab(), "-q", "up", str(file)])
        try:
            yield
        finally:
            output([*poclab(), "-q", "down", LAB, "--yes"])
            output([*poclab(), "-q", "image", "rm", "--yes", *_refs()])


def _refs() -> list[str]:
    return [f"{IMAGE}:{tag}" for tag in VERSIONS]


def _import_versions(directory: Path, profile: str) -> None:
    for tag, size in VERSIONS.items():
        disk = directory / f"{tag}.qcow2"
        output(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), size])
        form = ["--profile", profile, "--format", "qcow2"]
        output([*poclab(), "-q", "image", "import", f"{IMAGE}:{tag}", str(disk), *form])


def _lab_file(names: Sequence[str]) -> str:
    # Ports of their own choice could be taken by another session between two QEMUs.
    vms = [
        f'  {name}: {{image: {IMAGE}:v1, ports: ["{port}:22"]}}'
        for name, port in zip(names, _free_ports(len(names)), strict=True)
    ]
    return "\n".join([f"name: {LAB}", "defaults: {cpus: 1, memory: 64MiB}", "vms:", *vms]) + "\n"


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that the kernel finds free, none twice."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
