"""A runner that plays podman from a table of images, for tests that start no container."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from poclab.core.process import CommandFailed, Result, Runner

KERNEL = "usr/lib/modules/6.1.0/vmlinuz"
INITRAMFS = "usr/lib/modules/6.1.0/initramfs.img"
BOOTC_FILES = {
    KERNEL: b"MZ kernel",
    INITRAMFS: b"initramfs",
    "usr/lib/os-release": b'NAME="Fedora Linux"\nID=fedora\nVERSION_ID="44"\n',
    "etc/passwd": b"root:x:0:0::/root:/bin/sh\nadmin:x:1000:1000::/home/admin:/bin/sh\n",
}


def write_tar(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a tar file."""
    with tarfile.open(target, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


class FakePodman(Runner):
    """Answers podman commands; every other program is real.

    Attributes:
        calls: every podman command, without sudo.
        images: ID and labels by name.
        entrypoints: an image's entrypoint by name.
        versions: what `version` in a builder's image prints, by name.
        helps: what `build --help` prints there, by name; of the host's program, by that.
        registry: images that can be pulled.
        missing: programs that are not on this host.
        host: what programs of this host print, by name.
        files: what an export holds.
        on_run: what `podman run` does with its arguments and the line callback; its status.
        on_build: the same of `podman build`.
    """

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.images: dict[str, tuple[str, dict[str, str]]] = {}
        self.entrypoints: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}
        self.helps: dict[str, str] = {}
        self.registry: set[str] = set()
        self.missing = {"image-builder"}
        self.host: dict[str, str] = {}
        self.files: dict[str, bytes] = dict(BOOTC_FILES)
        self.on_run: Callable[[list[str], Callable[[str], None]], int] = lambda _argv, _line: 0
        self.on_build: Callable[[list[str], Callable[[str], None]], int] = lambda _argv, _line: 0
        self.sudo = Result(("sudo",), 0, "", "")
        self.sudo_calls: list[list[str]] = []
        self.removed: list[str] = []

    def add(self, name: str, labels: Mapping[str, str] | None = None) -> str:
        """Put an image into storage; gives its ID."""
        image_id = f"{len(self.images) + 1:064x}"
        self.images[name] = self.images[image_id] = (image_id, dict(labels or {}))
        return image_id

    def digest(self, name: str) -> str:
        """The digest of an image that was put in."""
        return f"sha256:{self.images[name][0][::-1]}"

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program not in self.missing else None

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        words = list(argv)
        if words[:2] in (["sudo", "-v"], ["sudo", "-n"]):
            self.sudo_calls.append(words)
            return self.sudo
        if words[0] == "sudo":
            words = words[1:]
        if words[0] in self.host:
            known = self.helps if words[-1] == "--help" else self.host
            return Result(tuple(words), 0, known.get(words[0], ""), "")
        if words[0] != "podman":
            return super().run(words, **options)
        self.calls.append(words)
        result = Result(tuple(words), *self._answer(words))
        if result.code != 0 and options.get("check", True):
            raise CommandFailed(result)
        return result

    def stream(self, argv: Sequence[str], on_line: Callable[[str], None], **options: Any) -> int:
        words = list(argv)[1:] if argv[0] == "sudo" else list(argv)
        if words[0] in self.host:
            return 0
        if words[0] != "podman":
            return super().stream(words, on_line, **options)
        self.calls.append(words)

        def line(text: str) -> None:
            if options.get("log"):
                with options["log"].open("a") as log:
                    log.write(text + "\n")
            on_line(text)

        if words[1] == "build":
            code = self.on_build(words, line)
            if code == 0:
                iid = Path(words[words.index("--iidfile") + 1])
                iid.write_text("sha256:" + self.images[words[words.index("--tag") + 1]][0])
            return code
        if words[1] == "export":
            return self._answer(words)[0]
        if words[1] == "pull":
            if words[-1] in self.registry:
                self.add(words[-1])
                return 0
            line("Error: no such host")
            return 125
        return self.on_run(words, line)

    @contextmanager
    def reading(self, argv: Sequence[str], *, timeout: float = 0) -> Iterator[IO[bytes]]:
        words = list(argv)
        self.calls.append(words)
        assert words[1] == "cp", words
        name = words[2].partition(":/")[2]
        if name not in self.files:
            raise CommandFailed(Result(tuple(words), 125, "", "Error: no such file"))
        with tempfile.NamedTemporaryFile() as archive:
            write_tar(Path(archive.name), {name: self.files[name]})
            yield archive

    def _answer(self, words: list[str]) -> tuple[int, str, str]:
        if words[1] == "image":
            found = self.images.get(words[-1])
            if words[2] == "exists":
                return (0 if found else 1), "", ""
            if found is None:
                return 125, "", "Error: no such image"
            entry = {
                "Id": found[0],
                "Digest": self.digest(words[-1]),
                "Labels": found[1],
                "Config": {"Entrypoint": self.entrypoints.get(words[-1])},
            }
            return 0, json.dumps([entry]), ""
        if words[1] == "export":
            write_tar(Path(words[words.index("--output") + 1]), self.files)
        if words[1] == "run" and words[-1] == "--help":
            text = self.helps.get(words[-3], "")
            return (0 if text else 1), text, ""
        if words[1] == "run" and "version" in words:
            text = self.versions.get(words[words.index("version") - 1], "")
            return (0 if text else 1), text, ""
        if words[1] == "info":
            return 0, json.dumps({"store": {"graphRoot": "/var/lib/containers/storage"}}), ""
        if words[1] == "rm":
            self.removed.append(words[-1])
        return 0, "", ""
