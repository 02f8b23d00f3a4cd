"""Other tools that make VMs anew: kcli, and Vagrant with its plugin for libvirt.

They get the same disk as a base, the same memory and firmware, and a network where their guest has
an address of its own; what they do over the network otherwise is turned off.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bench.measure import MeasurementError, output
from bench.reset import guests
from bench.reset.guests import Kind
from bench.reset.probe import Guest, Took, measured

_KCLI = "POCLAB_BENCH_KCLI"
_WHY = "POCLAB_BENCH_KCLI_FAULT"
_VAGRANT = "apt install --no-install-recommends vagrant-libvirt"
_POOL = "bench"


def prepare(directory: Path) -> Mapping[str, str]:
    """Install kcli from PyPI into a directory; returns what `Kcli` wants to know of it."""
    began = time.monotonic()
    pip = [str(directory / "bin/python"), "-m", "pip", "install", "-q", "kcli", "libvirt-python"]
    try:
        output([sys.executable, "-m", "venv", str(directory)])
        output(pip, timeout=300)
    except MeasurementError as error:
        return {_WHY: f"it cannot be installed: {str(error).splitlines()[-1]}"}
    seconds = time.monotonic() - began
    return {_KCLI: str(directory / "bin/kcli"), _WHY: f"installed in {seconds:.0f} s"}


def storage() -> None:
    """Make the pool that these tools put their disks into."""
    directory = guests.DIRECTORY / "pool"
    directory.mkdir()
    words = ["pool-define-as", _POOL, "dir", "--target", str(directory)]
    output(["virsh", "-q", *words])
    output(["virsh", "-q", "pool-start", _POOL])


def _emulated() -> bool:
    return guests.definition(f"{guests.LAB}.{guests.VM}").get("type") == "qemu"


def _bare_environment() -> dict[str, str]:
    """Without the packages that poclab is run with."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Kcli:
    """`kcli delete vm` and `kcli create vm` on a thin disk."""

    name = "kcli"

    def __init__(self, kind: Kind) -> None:
        self._kcli = os.environ.get(_KCLI, "")
        if not self._kcli:
            raise MeasurementError(os.environ.get(_WHY, "it is not there"))
        self._kind = kind
        self.guest = Guest("kcli", guests.address("kcli"), guests.key())
        image = f"{kind.name}.qcow2"
        shutil.copyfile(guests.base(), guests.DIRECTORY / "pool" / image)
        output(["virsh", "-q", "pool-refresh", _POOL])
        network = {"name": guests.NETWORK, "mac": guests.mac("kcli")}
        given = {
            "pool": _POOL,
            "memory": str(kind.memory),
            "numcpus": "1",
            "nets": f"[{network}]",
            "cloudinit": "False",
            "uefi": "True",
            **({"virttype": "qemu"} if _emulated() else {}),
        }
        self._create = ["create", "vm", "-i", image]
        self._create += [word for name in given for word in ("-P", f"{name}={given[name]}")]
        self._create.append("kcli")

    def version(self) -> str:
        """The version, and how long it took to install it."""
        text = self._run("version")
        return f"{text.split('Available')[0].strip()}; {os.environ.get(_WHY, '')}"

    def __call__(self) -> Took:
        """Delete the VM, if there is one, and create it."""
        script = '"$0" delete vm -y kcli; "$0" "$@"'
        argv = ["sh", "-c", script, self._kcli, *self._create]
        env = _bare_environment()
        return measured(argv, [self.guest], timeout=self._kind.boot, env=env)

    def snapshot(self, number: int) -> None:
        """Make a snapshot of the VM."""
        self._run("create", "vm-snapshot", "-n", "kcli", f"s{number}")

    def remove(self) -> None:
        """Delete the VM."""
        self._run("delete", "vm", "-y", "kcli")

    def _run(self, *words: str) -> str:
        return output(["env", "-u", "PYTHONPATH", self._kcli, *words])[1]


_VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  config.vm.box = "{kind.name}"
  config.vm.box_check_update = false
  config.vm.guest = :linux
  config.vm.allow_fstab_modification = false
  config.vm.allow_hosts_modification = false
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.boot_timeout = {kind.boot:.0f}
  config.ssh.username = "root"
  config.ssh.private_key_path = "{key}"
  config.ssh.insert_key = false
  config.ssh.shell = "sh"
  config.vm.provider :libvirt do |libvirt|
    libvirt.uri = "{uri}"
    libvirt.driver = "{driver}"
    libvirt.default_prefix = ""
    libvirt.memory = {kind.memory}
    libvirt.cpus = 1
    libvirt.machine_type = "q35"
    libvirt.loader = "{code}"
    libvirt.nvram = "{nvram}"
    libvirt.management_network_name = "{network}"
    libvirt.management_network_address = "{cidr}"
    libvirt.management_network_mac = "{mac}"
    libvirt.management_network_keep = true
    libvirt.graphics_type = "none"
    libvirt.storage_pool_name = "{pool}"
  end
  config.vm.define "vagrant"
end
"""


class Vagrant:
    """`vagrant destroy -f` and `vagrant up` of a box made of the same disk."""

    name = "vagrant-libvirt"

    def __init__(self, kind: Kind) -> None:
        if shutil.which("vagrant") is None:
            raise MeasurementError(f"it is not installed: {_VAGRANT}")
        self._kind = kind
        self._where = guests.DIRECTORY / f"vagrant-{kind.name}"
        shutil.rmtree(self._where, ignore_errors=True)  # of an earlier one
        self._where.mkdir()
        self._env = _bare_environment() | {
            "VAGRANT_HOME": str(self._where / "home"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_NO_COLOR": "1",
        }
        self.guest = Guest("vagrant", guests.address("vagrant"), guests.key())
        self._box()
        nvram = self._where / "nvram.fd"
        shutil.copyfile("/usr/share/OVMF/OVMF_VARS_4M.fd", nvram)
        text = _VAGRANTFILE.format(
            kind=kind,
            key=guests.key(),
            uri=guests.URI,
            driver="qemu" if _emulated() else "kvm",
            code="/usr/share/OVMF/OVMF_CODE_4M.fd",
            nvram=nvram,
            network=guests.NETWORK,
            cidr="10.77.9.0/24",
            mac=guests.mac("vagrant"),
            pool=_POOL,
        )
        (self._where / "Vagrantfile").write_text(text)

    def _box(self) -> None:
        """A box is an archive of the disk and a description."""
        box = self._where / "box"
        box.mkdir()
        shutil.copyfile(guests.base(), box / "box.img")
        size = 1 if self._kind.name == "tiny" else 2  # GiB, whole ones
        text = f'{{"provider": "libvirt", "format": "qcow2", "virtual_size": {size}}}'
        (box / "metadata.json").write_text(text)
        (box / "Vagrantfile").write_text('Vagrant.configure("2") { |config| }\n')
        names = ["metadata.json", "Vagrantfile", "box.img"]
        output(["tar", "-C", str(box), "-cf", str(self._where / "box.tar"), *names])
        self._run("box", "add", "--name", self._kind.name, "box.tar")
        shutil.rmtree(box)
        (self._where / "box.tar").unlink()

    def version(self) -> str:
        """The version."""
        return self._run("--version").strip()

    def __call__(self) -> Took:
        """Destroy the VM, if there is one, and bring it up."""
        argv = ["sh", "-c", "vagrant destroy -f && vagrant up"]
        limit = 2 * self._kind.boot
        return measured(argv, [self.guest], timeout=limit, env=self._env, directory=self._where)

    def snapshot(self, number: int) -> None:
        """Make a snapshot of the VM."""
        self._run("snapshot", "save", "vagrant", f"s{number}")

    def remove(self) -> None:
        """Destroy the VM."""
        self._run("destroy", "-f")

    def _run(self, *words: str) -> str:
        variables = [f"{name}={value}" for name, value in self._env.items()]
        argv = ["env", "-i", "-C", str(self._where), *variables, "vagrant", *words]
        return output(argv, timeout=300)[1]


PEERS = (Kcli, Vagrant)
