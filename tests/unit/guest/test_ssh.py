"""Keys, pinned host keys, and logging in to a real SSH server on 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from stat import S_IMODE

import pytest

from poclab.core import events
from poclab.core import process as processes
from poclab.core.errors import PoclabError
from poclab.guest import ssh
from poclab.guest.bootc import BootcGuest
from poclab.guest.probe import free_ports, ssh_banner, wait_until
from poclab.guest.ssh import LabFiles, LoginState, Target
from tests.hostile import floods

URI = "qemu:///session"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabFiles:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / 'a "home" of 100%d'))
    return LabFiles(URI, "customer-a")


# --- keys -----------------------------------------------------------------------------------


def test_the_key_is_made_once(files: LabFiles) -> None:
    assert files.private_key() is None
    public = files.public_key()
    kind, _, comment = public.split(" ", 2)
    assert (kind, comment) == ("ssh-ed25519", "poclab customer-a")
    private = files.private_key()
    assert private is not None
    assert S_IMODE(private.stat().st_mode) == 0o600
    assert S_IMODE(files.directory.stat().st_mode) == 0o700
    assert sorted(p.name for p in files.directory.iterdir()) == ["id_ed25519", "id_ed25519.pub"]
    content = private.read_bytes()
    assert files.public_key() == public
    assert private.read_bytes() == content


def test_a_lost_public_key_is_derived(files: LabFiles) -> None:
    public = files.public_key()
    (files.directory / "id_ed25519.pub").unlink()
    assert files.public_key() == public


def test_labs_and_hosts_have_keys_of_their_own(files: LabFiles) -> None:
    others = [LabFiles(URI, "customer-b"), LabFiles("qemu+ssh://root@h/system", "customer-a")]
    keys = {each.public_key() for each in (files, *others)}
    assert len(keys) == 3


@pytest.mark.parametrize("half", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz"])
def test_a_half_made_key_is_replaced(files: LabFiles, half: bytes) -> None:
    files.directory.mkdir(parents=True)
    (files.directory / "id_ed25519").write_bytes(half)
    left = files.directory / ".new-abc"
    left.mkdir()
    (left / "key").write_bytes(b"x")
    public = files.public_key()
    (files.directory / "id_ed25519.pub").unlink()
    assert files.public_key() == public  # derived from the private key: they are a pair
    assert not left.exists()


def test_killed_just_before_the_key_is_in_place_then_again(files: LabFiles) -> None:
    def stop(event: events.Event) -> None:
        if event.kind == "step":
            raise KeyboardInterrupt

    with events.listening(stop), pytest.raises(KeyboardInterrupt):
        files.public_key()
    assert files.private_key() is None
    assert files.public_key().startswith("ssh-ed25519 ")


def test_two_processes_at_once_end_with_one_key(files: LabFiles) -> None:
    code = (
        "from poclab.guest.ssh import LabFiles;"
        f" print(LabFiles({URI!r}, 'customer-a').public_key())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    keys = {process.communicate(timeout=60)[0].strip() for process in running}
    assert keys == {files.public_key()}


def test_the_program_is_missing(files: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(processes.Runner):
        def run(self, argv: object, **options: object) -> processes.Result:
            raise PoclabError("ssh-keygen is not installed")

    with processes.using(Missing()), pytest.raises(PoclabError, match="not installed"):
        files.public_key()
    assert files.private_key() is None


# --- pinned host keys -----------------------------------------------------------------------


def test_pins_of_other_overlays_are_forgotten(files: LabFiles) -> None:
    for vm, overlay in (("vm1", "o1"), ("vm1", "o2"), ("vm10", "o3"), ("vm1", "../../x")):
        path = files.known_hosts(vm, overlay)
        assert path.parent == files.directory / "known_hosts.d"
        path.touch()
    files.forget("vm1", keep="o2")
    assert sorted(p.name for p in (files.directory / "known_hosts.d").iterdir()) == [
        "vm1.o2",
        "vm10.o3",
    ]
    files.forget("vm1")
    assert not files.known_hosts("vm1", "o2").exists()


def test_remove_leaves_nothing(files: LabFiles) -> None:
    files.forget("vm1")
    files.public_key()
    files.known_hosts("vm1", "o1").touch()
    files.remove()
    assert not files.directory.parent.exists()
    files.remove()


# --- the command line -----------------------------------------------------------------------


def test_words(tmp_path: Path) -> None:
    target = Target("127.0.0.1", 2201, "root", tmp_path / "k", tmp_path / "h", "a.vm1")
    words = ssh.argv(target, ["cat", "a b", "$HOME"], ["-t"])
    assert words[:3] == ["ssh", "-F", "none"]
    assert words[-4:] == ["-t", "--", "127.0.0.1", "cat 'a b' '$HOME'"]
    assert "HostKeyAlias=a.vm1" in words
    assert "BatchMode=yes" not in words
    assert "ServerAliveInterval=15" not in words  # who watches a shell ends it
    assert ssh.argv(target, ["cd /tmp; ls | wc -l"], batch=True)[-1] == "cd /tmp; ls | wc -l"
    alone = {"BatchMode=yes", "ServerAliveInterval=15", "ServerAliveCountMax=4"}
    assert alone <= set(ssh.argv(target, batch=True))
    assert ssh.argv(target)[-1] == "127.0.0.1"


# --- against dropbear -----------------------------------------------------------------------


class Server:
    """dropbear on 127.0.0.1, for the user who runs the tests.

    It reads authorized_keys in the user's real home directory alone; so it runs in a mount
    namespace that has another directory there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = next(free_ports(43000, 60000))
        self.user = pwd.getpwuid(os.getuid())
        self.home = directory / "home"
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)

    def authorize(self, key: str) -> None:
        path = self.home / ".ssh/authorized_keys"
        path.write_text(key + "\n")
        path.chmod(0o600)

    @contextmanager
    def running(self, host_key: str = "host") -> Iterator[None]:
        assert os.getuid() == 0, "this test mounts in a namespace of its own: run it as root"
        path = self.directory / host_key
        if not path.exists():
            subprocess.run(
                ["dropbearkey", "-t", "ed25519", "-f", str(path)], check=True, capture_output=True
            )
        serve = f"dropbear -F -E -s -r {path} -p 127.0.0.1:{self.port} -P {self.directory}/pid"
        mount = f"mount --bind {shlex.quote(str(self.home))} {shlex.quote(self.user.pw_dir)}"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"{mount} && exec {serve}"],
            stderr=(self.directory / "log").open("ab"),
            env={"PATH": os.defpath + ":/usr/sbin:/sbin"},
        ) as process:
            try:
                wait_until(lambda: ssh_banner("127.0.0.1", self.port, 2), 20, what="dropbear")
                yield
            finally:
                process.kill()
                process.wait(10)

    def target(self, files: LabFiles, overlay: str = "o1") -> Target:
        key = files.private_key()
        assert key is not None
        pin = files.known_hosts("vm1", overlay)
        return Target("127.0.0.1", self.port, self.user.pw_name, key, pin, "customer-a.vm1")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_login(files: LabFiles, server: Server) -> None:
    server.authorize(files.public_key())
    target = server.target(files)
    assert ssh.login(target, 5) is LoginState.DOWN
    with server.running():
        assert ssh.login(target, 5) is LoginState.OK
        assert target.known_hosts.read_text().startswith("customer-a.vm1 ssh-ed25519 ")
        words = ssh.argv(target, ["printf", "%s|", "a b", "$HOME", "it's"], batch=True)
        assert processes.run(words, timeout=30).stdout == "a b|$HOME|it's|"
        words = ssh.argv(target, ["echo one; echo two | wc -l; exit 7"], batch=True)
        done = processes.run(words, timeout=30, check=False)
        assert (done.stdout, done.code, done.stderr) == ("one\n1\n", 7, "")


@pytest.mark.parametrize("flood", [floods.zeros(), floods.lines()], ids=["zeros", "lines"])
def test_a_login_that_floods(files: LabFiles, server: Server, flood: list[str]) -> None:
    # dropbear runs this in place of whatever it is asked to run, as a login shell could.
    server.authorize(f'command="{shlex.join(flood)}" {files.public_key()}')
    with server.running():
        assert ssh.login(server.target(files), 20) is LoginState.NOISY
        guest = BootcGuest(server.target(files), "acme/web")
        with pytest.raises(PoclabError, match="does not answer") as deaf:
            guest.check_login()
        assert deaf.value.why == "a login to it prints without end"
        for ask in (guest.status, lambda: guest.check_room(1), guest.drop_carried):
            with pytest.raises(PoclabError) as error:
                ask()
            assert error.value.lines()[:2] == [
                "acme/web prints without end",
                "why: ssh printed more than 1 MiB",
            ]
            assert "poclab ssh acme/web" in error.value.fix


def test_a_wrong_key_is_refused(files: LabFiles, server: Server) -> None:
    files.public_key()
    server.authorize(LabFiles(URI, "customer-b").public_key())
    with server.running():
        assert ssh.login(server.target(files), 5) is LoginState.REFUSED


def test_a_changed_host_key_is_noticed_and_a_new_overlay_starts_anew(
    files: LabFiles, server: Server
) -> None:
    server.authorize(files.public_key())
    with server.running():
        assert ssh.login(server.target(files), 5) is LoginState.OK
    with server.running("another"):
        assert ssh.login(server.target(files), 5) is LoginState.CHANGED_KEY
        assert ssh.login(server.target(files, "o2"), 5) is LoginState.OK


def test_the_users_configuration_does_not_matter(files: LabFiles, server: Server) -> None:
    server.authorize(files.public_key())
    (server.home / ".ssh/config").write_text("Host *\n  ProxyCommand false\n")
    words = ssh.argv(server.target(files), ["echo", "in"], batch=True)
    # ssh takes the home directory from passwd(5), not from the environment.
    mount = f"mount --bind {shlex.quote(str(server.home))} {shlex.quote(server.user.pw_dir)}"
    inside = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    with server.running():
        assert processes.run([*inside, *words], timeout=30).stdout == "in\n"
        words.remove("-F")
        words.remove("none")
        assert processes.run([*inside, *words], timeout=30, check=False).code == 255


def test_a_server_that_hangs_is_down(
    files: LabFiles, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.public_key()
    monkeypatch.setattr(ssh, "_GRACE", 0.5)
    with socket.create_server(("127.0.0.1", server.port)) as listening:

        def hang() -> None:
            connection, _ = listening.accept()
            with closing(connection):
                connection.sendall(b"SSH-2.0-hang\r\n")
                time.sleep(3)

        threading.Thread(target=hang, daemon=True).start()
        start = time.monotonic()
        assert ssh.login(server.target(files), 1) is LoginState.DOWN
        assert time.monotonic() - start < 2.9


def test_login_says_when_ssh_is_missing(
    files: LabFiles, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.public_key()
    monkeypatch.setattr(processes, "_environment", lambda extra: {"PATH": "/nonexistent"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PoclabError, match="ssh is not installed") as caught:
        ssh.login(server.target(files), 1)
    assert "openssh-client" in caught.value.fix
