"""What can be told of an image's Containerfile and files without building it.

hadolint has the general rules (`make lint`). These are those of bootc images, `bootc container
lint` among them as far as its rules show in the sources (bootc: crates/lib/src/lints.rs), and of
images whose versions are to share layers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

LINT = "bootc container lint"
# What is masked, empty or the machine's own once the image runs. /usr/etc is bootc's.
_NOT_THE_IMAGES = (
    "boot", "dev", "home", "opt", "proc", "root", "run", "sys", "tmp", "usr/etc", "var",
)  # fmt: skip
# tmpfiles.d(5): type with modifiers, path, mode, user, group, age, argument.
_TMPFILES = re.compile(r"[a-zA-Z][-+!=~^$?]* /\S+( (-|[0-7~:]{3,6})( \S+){2,4}.*)?")


@dataclass(frozen=True)
class Step:
    """An instruction of a Containerfile, its lines joined."""

    word: str
    text: str


def steps(text: str) -> list[Step]:
    """The instructions of a Containerfile."""
    found = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        word, _, rest = pending.partition(" ")
        found.append(Step(word.upper(), " ".join(rest.split())))
        pending = ""
    return found


def faults(text: str) -> list[str]:
    """What is wrong with the Containerfile of a bootc image."""
    found = steps(text)
    wrong = [fault for step in found for fault in _of_step(step)]
    if not found or found[0].word not in ("FROM", "ARG"):
        wrong.append("it does not begin with FROM")
    if not found or (found[-1].word, found[-1].text) != ("RUN", LINT):
        wrong.append(f"its last step is not RUN {LINT}")
    wrong += _of_sharing(found)
    return wrong


def _of_step(step: Step) -> list[str]:
    wrong = []
    if step.word == "FROM":
        image = step.text.split()[0]
        name, _, tag = image.rpartition(":")
        pinned = "@sha256:" in image or (name and "/" not in tag and tag != "latest")
        if not pinned and image != "scratch":
            wrong.append(f"{image} is not pinned")
    if step.word == "ADD" and re.search(r"https?://", step.text):
        wrong.append("ADD fetches from the network without a digest")
    if step.word == "WORKDIR" and not step.text.startswith("/"):
        wrong.append(f"WORKDIR {step.text} is relative")
    if step.word in ("CMD", "ENTRYPOINT") and not _is_list(step.text):
        wrong.append(f"{step.word} is not in its JSON form")
    if step.word in ("USER", "VOLUME", "EXPOSE", "HEALTHCHECK"):
        wrong.append(f"{step.word} means nothing on a machine")
    return wrong + (_of_run(step.text) if step.word == "RUN" else [])


def _of_run(text: str) -> list[str]:
    wrong = []
    if re.search(r"\bsudo\b", text):
        wrong.append("sudo in a build")
    if re.search(r"\b(dnf (-\S+ )*(update|upgrade)|apt-get (-\S+ )*(dist-)?upgrade)\b", text):
        wrong.append("what the base has is brought up to date behind its back")
    if re.search(r"\bapt (-\S+ )*(install|update)", text):
        wrong.append("apt is for terminals: use apt-get")
    if re.search(r"\bdnf (-\S+ )*install\b", text):
        wanted = {" -y": "-y", "dnf clean all": "dnf clean all", "/var/lib/dnf": "rm /var/lib/dnf"}
        missing = [say for part, say in wanted.items() if part not in text]
        wrong += [f"dnf install without {say}" for say in missing]
    if re.search(r"\bapt-get (-\S+ )*install\b", text):
        wanted = {
            "apt-get update": "apt-get update",
            " -y": "-y",
            "--no-install-recommends": "--no-install-recommends",
            "/var/lib/apt/lists/*": "rm /var/lib/apt/lists",
            "/var/cache/apt": "rm /var/cache/apt",
        }
        missing = [say for part, say in wanted.items() if part not in text]
        wrong += [f"apt-get install without {say}" for say in missing]
    if re.search(r"\b(dnf|apt-get) (-\S+ )*install\b", text) and "/var/log" not in text:
        wrong.append("logs of the installation stay in /var/log")
    if re.search(r"> ?/(var|run|tmp|boot)/", text):
        wrong.append("a file is written where it is the machine's or is lost")
    return wrong


def _of_sharing(found: list[Step]) -> list[str]:
    """The version may only be known after all that versions have in common."""
    names = [step.text.partition("=")[0] if step.word == "ARG" else "" for step in found]
    if "VERSION" not in names:
        return ["it does not take VERSION"]
    after = found[names.index("VERSION") :]
    late = [step for step in after if re.search(r"\binstall\b", step.text)]
    return ["packages are installed after ARG VERSION"] if late else []


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def file_faults(rootfs: Path) -> list[str]:
    """What is wrong with the files that an image adds."""
    wrong = []
    for path in sorted(rootfs.rglob("*")):
        name = path.relative_to(rootfs).as_posix()
        if any(name == top or name.startswith(f"{top}/") for top in _NOT_THE_IMAGES):
            wrong.append(f"/{name} would not be the image's at run time")
        if path.is_file() and "lib/tmpfiles.d/" in name:
            lines = [line for line in path.read_text().splitlines() if line.strip()]
            rules = [line for line in lines if not line.startswith("#")]
            wrong += [f"/{name}: {line!r}" for line in rules if not _TMPFILES.fullmatch(line)]
        program = path.is_file() and name.startswith(("usr/bin/", "usr/libexec/"))
        if program and not path.stat().st_mode & 0o111:
            wrong.append(f"/{name} cannot be executed")
    return wrong


def units(rootfs: Path, text: str) -> list[str]:
    """Units that are enabled, are the image's own and could not be."""
    wrong = []
    for step in steps(text):
        for command in re.findall(r"systemctl enable ([^&|;]+)", step.text):
            for unit in command.split():
                own = rootfs / "usr/lib/systemd/system" / unit
                if own.is_file() and "[Install]" not in own.read_text():
                    wrong.append(f"{unit} has no [Install]")
    return wrong
