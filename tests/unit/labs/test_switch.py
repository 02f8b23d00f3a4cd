"""Switching in place: where an image comes from, what is asked of the guest, what it may answer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from poclab.containers import podman as containers
from poclab.core import process
from poclab.core.errors import PoclabError
from poclab.core.process import CommandFailed, Result, Runner
from poclab.guest.bootc import CARRIED, BootcGuest, SameContent
from poclab.guest.bootc_status import Entry
from poclab.guest.ssh import Target
from poclab.labs.switch import _Switching, source_of
from poclab.model.history import remade
from poclab.model.record import Deployment
from poclab.model.version import Origin, Ref, Transport
from poclab.planning.differences import drift
from tests.support import make
from tests.unit.guest.test_bootc_status import entry, host

ID, DIGEST = "1f" * 32, f"sha256:{'2e' * 32}"


def origin(**given: Any) -> Origin:
    inputs = {"image_id": ID} | given.pop("inputs", {})
    found = Origin("built", "localhost/poclab/site:v3", DIGEST, "image-builder", inputs)
    return replace(found, **given)


# --- where an image comes from -------------------------------------------------------------


def test_an_image_that_is_carried_in_is_named_by_its_id() -> None:
    source = source_of(make.version("site:v3", origin=origin()), Transport.OCI)
    assert source.reference == f"/var/lib/poclab-switch/{ID}"
    assert source.is_of(Entry("oci", source.reference, "sha256:" + "9" * 64))
    assert source.is_of(Entry("registry", "quay.io/x", DIGEST))
    assert not source.is_of(Entry("registry", source.reference, "sha256:" + "9" * 64))
    assert not source.is_of(Entry())
    assert not source.is_of(None)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("quay.io/shop/site:v3", f"quay.io/shop/site@{DIGEST}"),
        ("reg:5000/site", f"reg:5000/site@{DIGEST}"),
        ("reg:5000/site:v3@sha256:" + "0" * 64, f"reg:5000/site@{DIGEST}"),
    ],
)
def test_an_image_of_a_registry_is_named_by_its_digest(name: str, reference: str) -> None:
    version = make.version("site:v3", origin=origin(inputs={"container": name}))
    assert source_of(version, Transport.REGISTRY).reference == reference


@pytest.mark.parametrize(
    ("transport", "given", "fault"),
    [
        (Transport.OCI, {"kind": "imported"}, "it was imported"),
        (Transport.OCI, {"kind": "committed"}, "it was committed"),
        (Transport.OCI, {"inputs": {"image_id": ""}}, "not built of a container image"),
        (Transport.OCI, {"inputs": {"image_id": "$(reboot)"}}, "not built of a container image"),
        (Transport.REGISTRY, {}, "is in no registry"),
        (Transport.REGISTRY, {"inputs": {"container": "localhost/site:v3"}}, "in no registry"),
        (Transport.REGISTRY, {"inputs": {"container": "a; reboot"}}, "in no registry"),
        (Transport.REGISTRY, {"inputs": {"container": "-h"}}, "in no registry"),
        (
            Transport.REGISTRY,
            {"inputs": {"container": "quay.io/site"}, "digest": ""},
            "is not known",
        ),
    ],
)
def test_what_cannot_be_switched_to(transport: Transport, given: Any, fault: str) -> None:
    with pytest.raises(PoclabError) as caught:
        source_of(make.version("site:v3", origin=origin(**given)), transport)
    assert fault in str(caught.value)
    assert "poclab reset VM --to v3" in caught.value.fix


def test_a_deployment_that_was_recorded_is_of_its_version() -> None:
    here, other = "sha256:" + "5" * 64, "sha256:" + "6" * 64
    version = make.version("site:v1", origin=origin())
    old = Deployment(version.ref, version.digest, here)
    new = Deployment(Ref("site", "v3"), DIGEST, other)
    source = source_of(version, Transport.OCI).known_as((new, old), version)
    # `bootc install` names it otherwise, and podman may have made another manifest of it.
    assert source.is_of(Entry("containers-storage", "localhost/poclab/site:v1", here))
    assert not source.is_of(Entry("oci", "/x", other))
    moved = replace(old, digest="blake3:" + "7" * 64)  # the tag is another disk by now
    assert (
        not source_of(version, Transport.OCI)
        .known_as((new, moved), version)
        .is_of(Entry("oci", "/x", here))
    )
    unknown = replace(old, image="")
    assert not source_of(version, Transport.OCI).known_as((new, unknown), version).is_of(Entry())


# --- what is asked of the guest ------------------------------------------------------------


class Guest(Runner):
    """A guest that answers from a table.

    Attributes:
        answers: what a command that begins so is answered.
        asked: the commands, as the guest's shell gets them.
        carried: what was streamed in.
    """

    def __init__(self, **answers: Result) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.carried = io.BytesIO()

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        assert argv[0] == "ssh"
        self.asked.append(argv[-1])
        found = (value for key, value in self.answers.items() if key in argv[-1])
        return next(found, Result(tuple(argv), 0, "", ""))

    @contextmanager
    def writing(self, argv: Sequence[str], *, timeout: float = 0) -> Iterator[IO[bytes]]:
        yield self.carried
        done = self.run(argv)
        if done.code:
            raise CommandFailed(done)


def answer(code: int = 0, stdout: str = "", stderr: str = "") -> Result:
    return Result(("ssh",), code, stdout, stderr)


def ask(guest: Guest, question: Callable[[BootcGuest], Any], user: str = "root") -> Any:
    target = Target("127.0.0.1", 22022, user, Path("/key"), Path("/known"))
    with process.using(guest):
        return question(BootcGuest(target, "acme/web"))


def test_commands_go_through_sudo_for_a_user_who_is_not_root() -> None:
    for user, begin in (("root", "sh -c "), ("core", "sudo -n sh -c ")):
        guest = Guest()
        ask(guest, lambda it: it.switch("oci", "/var/x"), user)
        (words,) = guest.asked
        assert words.startswith(begin)
        assert words.endswith("exec bootc switch --transport oci /var/x'")


def test_a_user_who_cannot_become_root_is_told_so() -> None:
    guest = Guest(sudo=answer(1, stderr="sudo: a password is required\n"))
    with pytest.raises(PoclabError, match="core of acme/web is not root"):
        ask(guest, BootcGuest.check_login, "core")


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (answer(127, stderr="sh: bootc: not found\n"), "there is no bootc in it"),
        (answer(0, json.dumps(host(booted=None))), "did not deploy it"),
        (answer(0, "{}"), "cannot be read"),
        (answer(1, stderr="\x1b[31merror: Status: no such\x07 file\n"), "bootc status failed in"),
        (answer(255, stderr="Connection closed\n"), "acme/web does not answer"),
    ],
)
def test_a_guest_without_a_bootc_that_can_be_asked(said: Result, fault: str) -> None:
    with pytest.raises(PoclabError) as caught:
        ask(Guest(bootc=said), BootcGuest.status)
    assert fault in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_guest_that_says_what_it_runs() -> None:
    found = ask(Guest(bootc=answer(0, json.dumps(host(staged=entry())))), BootcGuest.status)
    assert found.booted == found.staged


DF = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda2 9 9 {} 15% /\n"


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (answer(127), "there is no tar"),
        (answer(0, DF.format(1023)), "no room"),
        (answer(0, DF.format("-1")), "df failed"),
        (answer(0, ""), "df failed"),
        (answer(1, DF.format(4096)), "df failed"),
    ],
)
def test_room_in_the_guest(said: Result, fault: str) -> None:
    with pytest.raises(PoclabError, match=fault):
        ask(Guest(df=said), lambda it: it.check_room(1024 * 1024))
    ask(Guest(df=answer(0, DF.format(1024))), lambda it: it.check_room(1024 * 1024))


def test_a_directory_is_carried_in_as_files_of_root(tmp_path: Path) -> None:
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "blobs/sha256/0a").write_bytes(b"x" * 100_000)
    guest = Guest()
    ask(guest, lambda it: it.carry(tmp_path, CARRIED / ID))
    assert f"rm -rf {CARRIED} && umask 077 && mkdir -p {CARRIED / ID} && tar" in guest.asked[0]
    guest.carried.seek(0)
    with tarfile.open(fileobj=guest.carried) as archive:
        members = archive.getmembers()
    assert [item.name for item in members] == ["blobs/sha256/0a", "index.json"]
    assert {(item.uid, item.gid, item.mode, item.isreg()) for item in members} == {
        (0, 0, 0o644, True)
    }


def test_a_carrying_that_fails_says_why(tmp_path: Path) -> None:
    guest = Guest(tar=answer(1, stderr="tar: write error: No space left on device\n"))
    with pytest.raises(PoclabError, match="tar failed in acme/web") as caught:
        ask(guest, lambda it: it.carry(tmp_path, CARRIED / ID))
    assert caught.value.why == "tar: write error: No space left on device"


@pytest.mark.parametrize("slot", ["Booted", "Rollback", "Staged"])
def test_content_that_is_there_already(slot: str) -> None:
    # bootc 1.16.9, crates/lib/src/bootc_composefs/update.rs
    said = f"Target image has the same fs-verity digest as the existing Some({slot}) deployment."
    guest = Guest(switch=answer(1, stderr=f"error: Switching: Upgrading: {said}\n"))
    with pytest.raises(SameContent) as caught:
        ask(guest, lambda it: it.switch("oci", "/var/x"))
    assert caught.value.slot == slot.lower()


def test_a_reboot_may_end_the_connection_before_it_answers() -> None:
    ask(Guest(reboot=answer(255)), BootcGuest.reboot)
    with pytest.raises(PoclabError, match="reboot failed"):
        ask(Guest(reboot=answer(1, stderr="reboot: must be superuser")), BootcGuest.reboot)


# --- podman's part -------------------------------------------------------------------------


class Podman(Runner):
    """A podman that saves an image as it is told to."""

    def __init__(self, index: str) -> None:
        self.index = index
        self.words: list[str] = []

    def run(self, argv: Sequence[str], **options: Any) -> Result:
        self.words = list(argv)
        directory = Path(argv[argv.index("--output") + 1])
        directory.mkdir()
        (directory / "index.json").write_text(self.index)
        return Result(tuple(argv), 0, "", "")


def test_layers_are_saved_as_they_are(tmp_path: Path) -> None:
    podman = Podman(json.dumps({"manifests": [{"digest": DIGEST}]}))
    with process.using(podman):
        assert containers.save_layout(ID, tmp_path / "image") == DIGEST
    assert {"--uncompressed", "oci-dir"} < set(podman.words)
    assert podman.words[-1] == ID


TWO = json.dumps({"manifests": [{"digest": DIGEST}] * 2})


@pytest.mark.parametrize(
    "index", ["", "{}", "[]", '{"manifests": []}', '{"manifests": [{"digest": "../x"}]}', TWO]
)
def test_a_layout_that_is_none(index: str, tmp_path: Path) -> None:
    with process.using(Podman(index)), pytest.raises(PoclabError, match="cannot read"):
        containers.save_layout(ID, tmp_path / "image")


# --- the record ----------------------------------------------------------------------------


def test_what_is_recorded_of_a_vm_goes_with_its_disk() -> None:
    new, old = (Deployment(Ref("shop", tag), DIGEST, DIGEST) for tag in ("v3", "v1"))
    record = make.record(in_place=(new, old))
    assert (record.runs, record.version) == (Ref("shop", "v3"), Ref("shop", "v1"))
    assert list(drift(make.observed_vm(record))) == ["file asks v1"]
    clean = remade(record, "reset", make.STAMP)
    assert clean.in_place == ()
    assert clean.runs == clean.version


def test_a_reset_that_came_first_leaves_nothing_to_go_back_to() -> None:
    work = object.__new__(_Switching)
    work._record = make.record()  # as it is once the lab is locked
    with pytest.raises(PoclabError, match="was not switched in place") as error:
        work.rollback()
    assert error.value.fix
