"""Makes the stand-ins' container images from programs of this machine; needs no registry.

Run `python -m tests.support.builder_standin.make`; it prints the name of the one for
bootc-image-builder. A second run finds the image made of the same files and does nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from poclab.builders import direct
from tests.support import podman
from tests.support.closure import closure, copy_into, program

IMAGE = "localhost/poclab-test/bib-standin:latest"
IMAGE_BUILDER = "localhost/poclab-test/image-builder-standin:latest"
# The programs, and their modules.
_ENTRIES = {"bootc-image-builder": "bib", "image-builder": "image_builder", "bootc": "bootc"}
_LABEL = "poclab-test.inputs"
_HERE = Path(__file__).parent
_POCLAB = _HERE.parents[2] / "poclab"
# What the direct builder runs, e2fsck and tune2fs for its checks, xorriso for ISOs; podman stays
# outside.
_PROGRAMS = tuple(sorted({*direct._PROGRAMS, "e2fsck", "tune2fs", "xorriso"} - {"podman"}))
# mtools converts names with iconv to this code page; glibc loads it when it is asked for.
_GCONV = ("gconv-modules", "gconv-modules.cache", "gconv-modules.d", "IBM850.so")
_NOT_NEEDED = (
    "test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "site-packages",
    "dist-packages", "pydoc_data", "distutils", "venv", "config-*", "*.a",
)  # fmt: skip


def make() -> str:
    """Make bootc-image-builder's image in this user's storage unless it is there already.

    Returns:
        Its name.
    """
    inputs = _inputs()
    form = f'{{{{.Id}}}} {{{{index .Labels "{_LABEL}"}}}}'
    before = ""
    with suppress(RuntimeError):
        found = podman.run("image", "inspect", "--format", form, IMAGE)
        before, _, made_of = found.strip().partition(" ")
        if made_of == inputs:
            return IMAGE
    with tempfile.TemporaryDirectory(prefix="poclab-test-") as scratch:
        tree = Path(scratch) / "root"
        python = _fill(tree)
        archive = Path(scratch) / "root.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(tree, arcname=".", filter=_owned_by_root)
        changes = (
            'ENTRYPOINT ["/usr/bin/bootc-image-builder"]',
            "WORKDIR /output",
            "ENV PATH=/usr/bin:/usr/sbin:/bin:/sbin",
            f"LABEL {_LABEL}={inputs}",
            f"LABEL poclab-test.python={python}",
        )
        words = [word for change in changes for word in ("--change", change)]
        podman.run("import", *words, str(archive), IMAGE)
    if before:
        # Without its name it would only take room; a container may still use it.
        with suppress(RuntimeError):
            podman.run("rmi", before)
    return IMAGE


def make_image_builder() -> str:
    """Make image-builder's image: the same files, another program that is run.

    Returns:
        Its name.
    """
    with tempfile.TemporaryDirectory(prefix="poclab-test-") as scratch:
        text = f'FROM {make()}\nENTRYPOINT ["/usr/bin/image-builder"]\n'
        (Path(scratch) / "Containerfile").write_text(text)
        podman.run("build", "--tag", IMAGE_BUILDER, scratch)
    return IMAGE_BUILDER


def _inputs() -> str:
    """What the image is made of, as a digest: our sources, and the host's programs by time."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted([*_HERE.glob("*.py"), *_POCLAB.rglob("*.py")]):
        digest.update(path.read_bytes())
    for name in _PROGRAMS:
        status = program(name).stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _fill(tree: Path) -> Path:
    """Make the image's files; gives the path of Python in it."""
    for name in ("usr/bin", "tmp", "run", "proc", "sys", "dev", "etc", "output", "var/tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    python = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    copy_into(tree, closure([program(name) for name in _PROGRAMS]))
    for name in _PROGRAMS:
        target = tree / "usr/bin" / name
        if not target.exists():
            shutil.copy2(program(name), target)
    copy_into(tree, _found("/usr/lib/systemd/boot/efi", ("*.efi",)))
    for gconv in [*Path("/usr/lib").glob("*/gconv"), Path("/usr/lib64/gconv")]:
        copy_into(tree, _found(str(gconv), _GCONV))
    copy_into(tree, _found("/usr/lib/locale/C.utf8", ("*",)))
    _copy_python(tree, python)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_POCLAB, tree / "opt/standin/poclab", ignore=ignored)
    package = tree / "opt/standin/tests/support/builder_standin"
    package.mkdir(parents=True)
    for directory in (package, package.parent, package.parents[1]):
        (directory / "__init__.py").touch()
    for path in _HERE.glob("*.py"):
        shutil.copy2(path, package)
    for name, module in _ENTRIES.items():
        entry = tree / "usr/bin" / name
        entry.write_text(
            f"#!{python} -B\nimport sys\nsys.path.insert(0, '/opt/standin')\n"
            f"from tests.support.builder_standin.{module} import main\nsys.exit(main())\n"
        )
        entry.chmod(0o755)
    return python


def _copy_python(tree: Path, python: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    target = tree / library.relative_to("/")
    ignored = shutil.ignore_patterns(*_NOT_NEEDED)
    shutil.copytree(library, target, ignore=ignored, symlinks=True, dirs_exist_ok=True)
    modules = target.rglob("*.so")
    copy_into(tree, closure([python, *(Path("/") / path.relative_to(tree) for path in modules)]))


def _found(directory: str, patterns: Iterable[str]) -> set[Path]:
    matches = {path for pattern in patterns for path in Path(directory).glob(pattern)}
    return {
        path
        for match in matches
        for path in ([match] if match.is_file() else match.rglob("*"))
        if path.is_file()
    }


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


if __name__ == "__main__":
    try:
        print(make())
    except (RuntimeError, subprocess.TimeoutExpired) as failure:
        sys.exit(str(failure))
