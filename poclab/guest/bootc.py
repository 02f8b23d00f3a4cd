"""A running guest that bootc deployed, over SSH: what it runs, and what it is asked to run.

Each call is a login of its own. Commands need root there: as another user they go through sudo,
which must not ask. A login that fails half-way says nothing about what the guest did, so callers
look at `status` again.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.plaintext import plain
from poclab.core.process import CommandFailed, Result, TooMuchOutput, run, runner
from poclab.guest import bootc_status, probe, ssh
from poclab.guest.bootc_status import Status
from poclab.guest.ssh import LoginState, Target

# Where images are carried to, and nothing else is.
CARRIED = PurePosixPath("/var/lib/poclab-switch")
_ASK = 60.0  # seconds for a question; an emulated guest is slow
_GLANCE = 2.0  # seconds for an SSH server to identify itself
_LOGIN = 15.0  # seconds for an attempt to log in
_WORK = 3600.0  # seconds for `bootc switch`, which unpacks gigabytes
_SSH_FAILED = 255  # ssh(1): its own errors
# A connection that is dead for a minute ends; else a copy to a guest that hangs would hang as well.
_ALIVE = ("-T", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_NOT_THERE = 127  # sh(1): no such command
_BOOT_ID = re.compile(r"[0-9a-f-]{36}")  # proc_sys_kernel(5), random/boot_id


# bootc 1.16.9 with the composefs backend (bootc_composefs/update.rs) deploys no content twice; what
# the slot is called is Rust's `Some(Booted)`.
_SAME_CONTENT = re.compile(r"same fs-verity digest as the existing (?:Some\()?([A-Za-z]{1,20})")


class SameContent(Exception):
    """The guest has a deployment with the content of the image that it was to stage.

    Attributes:
        slot: which one, "booted", "rollback" or "staged".
    """

    def __init__(self, slot: str) -> None:
        super().__init__(slot)
        self.slot = slot


class BootcGuest:
    """One guest.

    Args:
        target: how to log in.
        path: the VM as `LAB/VM`, for messages.
    """

    def __init__(self, target: Target, path: str) -> None:
        self._target = target
        self._path = path

    # --- questions -----------------------------------------------------------------------

    def check_login(self) -> None:
        """See that a login works, and that it is root's or can become so.

        Raises:
            PoclabError: it does not.
        """
        state = ssh.login(self._target, _LOGIN)
        if state is not LoginState.OK:
            why = {
                LoginState.REFUSED: f"SSH does not let {self._target.user} in with the lab's key",
                LoginState.CHANGED_KEY: "its host key is another than at first contact",
                LoginState.NOISY: "a login to it prints without end",
            }.get(state, "no answer over SSH")
            raise self._deaf(why)
        if self._target.user != "root" and self._do("true", _ASK).code != 0:
            raise PoclabError(
                f"{self._target.user} of {self._path} is not root",
                why="sudo asks for a password there, or is not there",
                fix="let that user use sudo without a password, or use an image whose user is root",
            )

    def status(self) -> Status:
        """What it runs.

        Raises:
            PoclabError: it does not answer, or is no system that bootc deployed.
        """
        done = self._do("exec bootc status --format=json --format-version=1", _ASK)
        if done.code == _NOT_THERE:
            raise self._no_bootc("there is no bootc in it")
        if done.code != 0:
            raise self._failed("bootc status", done)
        try:
            found = bootc_status.parse(done.stdout)
        except ValueError as error:
            raise PoclabError(
                f"what bootc status says in {self._path} cannot be read", why=f"{error}"
            ) from error
        if found.booted is None:
            raise self._no_bootc("bootc is in it, but did not deploy it (status.booted is null)")
        return found

    def boot_id(self) -> str:
        """What is another one after each boot; empty while it does not answer."""
        # A login to a guest that is down takes as long as it may: QEMU accepts for the guest.
        if not probe.ssh_banner(self._target.host, self._target.port, _GLANCE):
            return ""
        try:
            done = self._do("cat /proc/sys/kernel/random/boot_id", _LOGIN)
        except PoclabError:  # it hung and was ended
            return ""
        found = done.stdout.strip()
        return found if done.code == 0 and _BOOT_ID.fullmatch(found) else ""

    def check_room(self, size: int) -> None:
        """See that an image can be carried in.

        Args:
            size: the bytes it has.

        Raises:
            PoclabError: there is no room where it goes, or no tar.
        """
        where = CARRIED.parent
        done = self._do(f"command -v tar >/dev/null || exit 127; df -Pk {where}", _ASK)
        if done.code == _NOT_THERE:
            raise PoclabError(
                f"there is no tar in {self._path}",
                why="images are carried in with it",
                fix="add the package tar to the image, or use --transport registry",
            )
        # POSIX df -P: a heading, then device, blocks, used, available, in KiB.
        words = done.stdout.splitlines()[-1].split() if done.stdout.strip() else []
        if done.code != 0 or len(words) < 4 or not re.fullmatch(r"[0-9]{1,15}", words[3]):
            raise self._failed("df", done)
        free = int(words[3]) * 1024
        if free < size:
            raise PoclabError(
                f"there is no room in {self._path}",
                why=f"{where} has {free // 2**20} MiB left, the image {-(-size // 2**20)} MiB",
                fix=f"make room there, or give it a larger `disk` and `poclab reset {self._path}`",
            )

    # --- what is done to it ----------------------------------------------------------------

    def carry(self, directory: Path, name: PurePosixPath) -> None:
        """Copy a directory in, in place of whatever was carried in before.

        Args:
            directory: the directory; it is streamed, whatever its size.
            name: the directory it becomes, below `CARRIED`.

        Raises:
            PoclabError: it is not there whole.
        """
        events.step("carry the image in", vm=self._path)
        script = f"rm -rf {CARRIED} && umask 077 && mkdir -p {name} && tar -x -f - -C {name}"
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        total = sum(path.stat().st_size for path in files)
        done = 0
        try:
            with (
                self._bounded(),
                runner().writing(self._argv(script, _ALIVE), timeout=_WORK) as stream,
                # GNU's format: sizes beyond 8 GiB that busybox reads too.
                tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive,
            ):
                for path in files:
                    text = f"{self._path}: carrying the image in"
                    events.progress(text, done, total, bytes=True)
                    archive.add(path, str(path.relative_to(directory)), filter=_anonymous)
                    done += path.stat().st_size
        except CommandFailed as error:
            raise self._failed("tar", error.result) from error

    def drop_carried(self) -> None:
        """Remove what was carried in; nothing there is fine."""
        events.step("remove what was carried in", vm=self._path)
        done = self._do(f"rm -rf {CARRIED}", _ASK)
        if done.code != 0:
            raise self._failed("rm", done)

    def switch(self, transport: str, reference: str) -> None:
        """Stage an image for the next boot; the system that runs is not changed.

        Raises:
            SameContent: if the guest has a deployment of that content.
            PoclabError: bootc refuses, or the connection was lost: `status` says which.
        """
        events.step("bootc switch", vm=self._path)
        # The reference is made of a path or name of our own and a digest: no quoting is needed.
        done = self._do(f"exec bootc switch --transport {transport} {reference}", _WORK)
        if done.code not in (0, _SSH_FAILED) and (same := _SAME_CONTENT.search(done.stderr)):
            raise SameContent(same[1].lower())
        if done.code != 0:
            raise self._failed("bootc switch", done)

    def rollback(self) -> None:
        """Have the next boot run what it ran before.

        Raises:
            PoclabError: bootc refuses.
        """
        events.step("bootc rollback", vm=self._path)
        done = self._do("exec bootc rollback", _ASK)
        if done.code != 0:
            raise self._failed("bootc rollback", done)

    def reboot(self) -> None:
        """Ask it to boot anew; the connection may end before the answer comes."""
        events.step("reboot", vm=self._path)
        done = self._do("exec reboot", _ASK)
        if done.code not in (0, _SSH_FAILED):
            raise self._failed("reboot", done)

    # --- logins ----------------------------------------------------------------------------

    def _argv(self, script: str, options: Sequence[str]) -> list[str]:
        words = ssh.as_root(self._target.user, script)
        return ssh.argv(self._target, words, options, batch=True, connect_timeout=int(_LOGIN))

    def _do(self, script: str, timeout: float) -> Result:
        argv = self._argv(script, ("-n", *_ALIVE))
        with self._bounded():
            return run(argv, check=False, timeout=timeout + _LOGIN, most=ssh.ANSWER)

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        try:
            yield
        except TooMuchOutput as error:
            raise PoclabError(
                f"{self._path} prints without end",
                why=error.what,
                fix=f"see what it prints: poclab ssh {self._path}; "
                f"`poclab reset {self._path}` gives it a clean disk",
            ) from error

    def _failed(self, what: str, done: Result) -> PoclabError:
        why = plain(done.last_line)
        if done.code == _SSH_FAILED:
            return self._deaf(why)
        return PoclabError(
            f"{what} failed in {self._path}",
            why=why,
            fix=f"it runs what it ran; see it there: poclab ssh {self._path}",
        )

    def _deaf(self, why: str) -> PoclabError:
        return PoclabError(
            f"{self._path} does not answer",
            why=why,
            fix=f"try again when it does; `poclab reset {self._path}` gives it a clean disk",
        )

    def _no_bootc(self, why: str) -> PoclabError:
        return PoclabError(
            f"{self._path} cannot be switched in place",
            why=why,
            fix=f"`poclab reset {self._path} --to TAG` puts it on a clean disk of a version",
        )


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Root's file in the guest, whoever has it here."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member
