"""podman on odd machines: find out whether it works, and make it work where it does not.

Product code is left alone: where the plain podman cannot start a container, a `podman` (and a
`sudo`) of `tests/support/podman_bin/` go first on PATH. For a shell: `eval "$(python -m
tests.support.podman)"`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.closure import closure, copy_into, program

WRAPPERS = Path(__file__).parent / "podman_bin"


@cache
def plain_works() -> bool:
    """Whether the plain podman can start a container here, tried within 30 s.

    The container's root is a directory that holds `true` alone, so no image is needed.
    """
    with tempfile.TemporaryDirectory(prefix="poclab-test-") as scratch:
        root = Path(scratch) / "root"
        true = program("true").resolve()
        copy_into(root, closure([true]))
        argv = ["podman", "run", "--rm", "--network=none", "--rootfs", str(root), str(true)]
        path = os.environ["PATH"].replace(f"{WRAPPERS}:", "")
        try:
            done = subprocess.run(
                argv,
                env=dict(os.environ, PATH=path),
                capture_output=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        finally:
            # podman makes mount points such as /run and /proc below the root, some unreadable.
            shutil.rmtree(root, ignore_errors=True)
    return done.returncode == 0


def environment() -> dict[str, str]:
    """Variables that make podman work in this process's children; empty where it does anyway."""
    if plain_works():
        return {}
    path = os.environ["PATH"]
    if not path.startswith(f"{WRAPPERS}:"):
        path = f"{WRAPPERS}:{path}"
    return {"PATH": path, "BUILDAH_ISOLATION": "chroot"}


@contextmanager
def working() -> Iterator[None]:
    """Have a podman that works on PATH inside the block."""
    wanted = environment()
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def run(*argv: str, timeout: float = 300) -> str:
    """Run podman for the test itself and return what it printed.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        ["podman", *argv],
        env=dict(os.environ) | environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"podman {argv[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main() -> None:
    """Print shell commands that set the environment."""
    for key, value in environment().items():
        print(f"export {key}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
