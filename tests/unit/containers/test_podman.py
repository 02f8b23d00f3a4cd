"""podman as poclab calls it: arguments, what goes wrong, and what is always cleaned up."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from poclab.containers import podman
from poclab.containers.podman import ImageInfo
from poclab.core.errors import PoclabError
from poclab.core.process import CommandFailed, Result, Runner, using

ID = "ab" * 32
INSPECTED = json.dumps(
    [{"Id": ID, "Digest": "sha256:" + "cd" * 32, "Labels": {"a": "b"}, "Size": 1234}]
)
Answer = tuple[int, str, str]


class Fake(Runner):
    """Answers instead of podman and notes what it was asked."""

    def __init__(self, answers: Mapping[str, Answer | BaseException]) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []
        self.env: Mapping[str, str] | None = None

    def run(  # type: ignore[override]
        self, argv: Sequence[str], *, check: bool = True, timeout: float | None = None
    ) -> Result:
        self.asked.append(list(argv))
        text = " ".join(argv)
        answer = next((a for key, a in self.answers.items() if key in text), (0, "", ""))
        if isinstance(answer, BaseException):
            raise answer
        result = Result(tuple(argv), *answer)
        if check and result.code:
            raise CommandFailed(result)
        return result

    def stream(  # type: ignore[override]
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        log: Path | None = None,
        timeout: float | None = None,
        watch: Callable[[], None] | None = None,
    ) -> int:
        if "export" in argv:
            result = self.run(argv, check=False)
            on_line(result.stderr)
            return result.code
        self.asked.append(list(argv))
        code, lines, image_id = self.answers["build"]  # type: ignore[misc]
        for line in str(lines).splitlines():
            on_line(line)
        if code == 0:
            Path(argv[argv.index("--iidfile") + 1]).write_text(f"sha256:{image_id}")
        return int(code)

    @contextmanager
    def reading(self, argv: Sequence[str], *, timeout: float = 0) -> Iterator[IO[bytes]]:
        self.asked.append(list(argv))
        yield io.BytesIO(b"tar")


@contextmanager
def answering(**answers: Answer | BaseException) -> Iterator[Fake]:
    fake = Fake({key.replace("_", " "): value for key, value in answers.items()})
    with using(fake):
        yield fake


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_inspect() -> None:
    with answering(image_inspect=(0, INSPECTED, "")) as fake:
        found = podman.inspect("-shop")
    assert found == ImageInfo(ID, "-shop", "sha256:" + "cd" * 32, {"a": "b"}, 1234)
    assert fake.asked[0][-2:] == ["--", "-shop"]


def test_inspect_an_image_that_is_not_there() -> None:
    with (
        answering(image_inspect=(125, "", "Error: x"), image_exists=(1, "", "")),
        pytest.raises(PoclabError, match="there is no container image 'shop'") as error,
    ):
        podman.inspect("shop")
    assert "podman pull" in error.value.fix


def test_inspect_prints_nonsense() -> None:
    for text in ("", "[]", "[{}]", "null"):
        with (
            answering(image_inspect=(0, text, "")),
            pytest.raises(PoclabError, match="cannot read"),
        ):
            podman.inspect("shop")


@pytest.mark.usefixtures("ordinary_user")
def test_root_s_storage_is_reached_with_sudo() -> None:
    with answering(image_exists=(1, "", "")) as fake:
        assert not podman.exists("shop", root=True)
        assert not podman.exists("shop")
    assert [argv[:2] for argv in fake.asked] == [["sudo", "podman"], ["podman", "image"]]


BROKEN = [
    (
        'cannot find UID/GID for user x: no subuid ranges found for user "x" in /etc/subuid',
        "--add-subuids",
    ),
    ("Error: writing blob: no space left on device", "make room"),
    (
        "Error: initializing source docker://x/y:latest: pinging container registry x: i/o",
        "registry",
    ),
    ("sudo: a password is required", "sudo -v"),
    ("x is not in the sudoers file.", "may use sudo"),
    ("Error: unauthorized: access denied", "podman login"),
]


@pytest.mark.parametrize(("text", "fix"), BROKEN)
def test_broken_podman_is_explained(text: str, fix: str) -> None:
    with answering(image_exists=(125, "", text)), pytest.raises(PoclabError) as error:
        podman.exists("shop")
    assert error.value.what == "podman image failed"
    assert error.value.why == text
    assert fix in error.value.fix


@pytest.mark.usefixtures("ordinary_user")
def test_sudo_that_refuses_is_no_image_that_is_missing() -> None:
    text = "sudo: a terminal is required to read the password\nsudo: a password is required"
    with answering(image_exists=(1, "", text)), pytest.raises(PoclabError, match="sudo -v"):
        podman.exists("shop", root=True)
    with answering(image_exists=(1, "", 'time="now" level=warning msg="/ is not shared"')):
        assert not podman.exists("shop", root=True)


def test_podman_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(podman, "podman", lambda root=False: [str(tmp_path / "podman")])
    with pytest.raises(PoclabError, match="is not installed"):
        podman.exists("shop")


def build(tmp_path: Path, lines: list[str]) -> ImageInfo:
    return podman.build(
        tmp_path, tmp_path / "Containerfile", "localhost/poclab/shop:v1", {"B": "2", "A": "1 1"},
        lines.append, tmp_path / "log", no_cache=True,
    )  # fmt: skip


def test_build(tmp_path: Path) -> None:
    lines: list[str] = []
    with answering(build=(0, "STEP 1\nSTEP 2", ID), image_inspect=(0, INSPECTED, "")) as fake:
        found = build(tmp_path, lines)
    argv = fake.asked[0]
    assert argv[:4] == ["podman", "build", "--tag", "localhost/poclab/shop:v1"]
    assert argv[-7:] == [
        "--no-cache", "--build-arg", "A=1 1", "--build-arg", "B=2", "--", str(tmp_path),
    ]  # fmt: skip
    assert not [word for word in argv if word.startswith(("--isolation", "--secret"))]
    assert lines == ["STEP 1", "STEP 2"]
    assert (found.id, found.name) == (ID, "localhost/poclab/shop:v1")
    assert fake.asked[1][-1] == ID


def test_a_failed_build_shows_the_error_and_the_log(tmp_path: Path) -> None:
    text = "STEP 1\nError: building at STEP 1: x\nlevel=warning msg=cleanup"
    with answering(build=(125, text, "")), pytest.raises(PoclabError) as error:
        build(tmp_path, [])
    assert str(tmp_path / "log") in error.value.what
    assert error.value.why == "Error: building at STEP 1: x"
    assert error.value.fix.startswith("correct ")


def test_an_image_that_is_read_as_it_comes_leaves_no_container() -> None:
    for failure in (None, PoclabError("bad"), KeyboardInterrupt()):
        with answering() as fake, suppress(PoclabError, KeyboardInterrupt):
            with podman.exported(ID) as stream:
                assert stream.read() == b"tar"
                if failure:
                    raise failure
            assert failure is None
        words = [argv[1] for argv in fake.asked]
        assert words == ["create", "export", "rm"]
        assert "--pull=never" in fake.asked[0]
        assert fake.asked[0][-2:] == [ID, "/sbin/init"]
        assert fake.asked[1][-1] == fake.asked[2][-1]
    with (
        answering(podman_create=(125, "", "Error: no space left on device")) as fake,
        pytest.raises(PoclabError, match="podman create failed"),
        podman.exported(ID),
    ):
        pass
    assert [argv[1] for argv in fake.asked] == ["create", "rm"]


def test_export_always_removes_its_container(tmp_path: Path) -> None:
    for failure in ((125, "", "Error: full"), KeyboardInterrupt()):
        with (
            answering(podman_export=failure) as fake,
            pytest.raises((PoclabError, KeyboardInterrupt)),
        ):
            podman.export(ID, tmp_path / "t.tar")
        create, _, remove = fake.asked
        name = create[create.index("--name") + 1]
        assert remove[:2] == ["podman", "rm"]
        assert remove[-1] == name
        assert {"--pull=never", "--network=none"} < set(create)


def test_leftovers_are_those_of_processes_that_are_gone() -> None:
    own = podman.container_name("export")
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = f"poclab-bib-{ended.pid}-1-abcdef"
    reused = f"poclab-export-{os.getpid()}-1-abcdef"
    names = [own, gone, reused, "poclab-mine", "poclab-bib-x-1-abcdef"]
    with answering(ps=(0, "\n".join(names), "")) as fake:
        assert podman.remove_leftovers() == sorted([gone, reused])
    assert sorted(argv[-1] for argv in fake.asked[1:]) == sorted([gone, reused])


@pytest.mark.usefixtures("ordinary_user")
def test_copy_to_root(tmp_path: Path) -> None:
    with answering(image_exists=(0, "", "")) as fake:
        podman.copy_to_root(ID, "shop:v1", tmp_path)
    assert [argv[1:3] for argv in fake.asked] == [["podman", "image"], ["podman", "tag"]]
    with (
        answering(image_exists=(1, "", "")) as fake,
        pytest.raises(PoclabError, match="another ID"),
    ):
        podman.copy_to_root(ID, "shop:v1", tmp_path)
    _, save, load, _ = fake.asked
    assert save[:2] == ["podman", "save"]
    assert save[-1] == ID
    assert load[:3] == ["sudo", "podman", "load"]
    assert list(tmp_path.iterdir()) == []


def test_root_needs_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with answering() as fake:
        podman.copy_to_root(ID, "shop:v1", tmp_path)
    assert fake.asked == []
