"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe() -> list[str]:
    """The machine and the versions that matter, a line each."""
    return [
        f"cpu      {_cpu()}, {len(os.sched_getaffinity(0))} cores, {_memory()} GiB",
        f"kernel   {platform.system()} {platform.release()}, {_kvm()}",
        f"python   {platform.python_version()}, typer {_package('typer')}, "
        f"libvirt-python {_package('libvirt-python')}",
        f"libvirt  {_tool('virsh')}",
        f"qemu     {_tool('qemu-system-x86_64')}",
        f"load     {' '.join(f'{value:.2f}' for value in os.getloadavg())} before the first run",
    ]


def _cpu() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _kvm() -> str:
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "/dev/kvm accessible" if usable else "no /dev/kvm for this user"


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a copy of the packages may lack their metadata
        return "of unknown version"


def _tool(name: str) -> str:
    if shutil.which(name) is None:
        return "not installed"
    done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+:~-]*", done.stdout)
    return found[0] if found else "of unknown version"
