"""`poclab image build`: from an image's directory to a published version."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from poclab.builders.auto import AUTO, builder_for, named
from poclab.builders.auto import NAMES as BUILDERS
from poclab.builders.base import Builder, BuildRequest
from poclab.containers import podman
from poclab.containers.podman import ImageInfo
from poclab.core import events, locks, paths
from poclab.core.errors import PoclabError, UsageError
from poclab.core.plaintext import stored
from poclab.core.process import CommandFailed, runner
from poclab.core.units import format_seconds, format_size
from poclab.disks import inspection, pool_disks, profile_guess
from poclab.images.build_cache import SECONDS, Earlier
from poclab.model.names import check_tag
from poclab.model.version import Origin, Ref, Version
from poclab.schema.image import ImageFile
from poclab.store.versions import Store

LOGS_KEPT = 10  # an image
# The input of a version that says what a builder made of `rootfs`.
ROOT_FILE_SYSTEM = "root_filesystem"
_STEP = re.compile(r"^STEP ([0-9]+)/([0-9]+): (.+)$")
# Labels that say what an image is, and those that the OCI image specification defines
# (annotations.md, "Pre-Defined Annotation Keys").
_OCI = "org.opencontainers.image."
_DEFINED = (
    "created authors url documentation source version revision vendor licenses ref.name title"
)
_DEFINED += " description base.digest base.name"
_FIRST = frozenset(_OCI + name for name in _DEFINED.split())
# What a manifest takes of a stranger's labels. In JSON a character has 12 bytes at most, and all
# of a manifest 4 MiB (`version_volumes.LARGEST`).
LABELS, LABEL_LENGTH = 100, 2048
# Longer than a builder may take: a second build of a version waits for the first one's result.
_PATIENCE = 5 * 3600.0


def build_image(
    store: Store,
    definition: ImageFile,
    tag: str,
    *,
    uri: str,
    build_args: Mapping[str, str] | None = None,
    builder: str | None = None,
    no_cache: bool = False,
) -> Version:
    """Build a version of an image: container image, bootable disk, published version.

    A version that was built from the same inputs is not built again: the one of that name is
    given back, one of another tag lends its disk. A second build of one version at the same
    time waits for the first and takes its result.

    Whatever goes wrong, nothing is published and the work directory goes; the log stays. What
    a killed build left is removed by the next one.

    Args:
        store: where the version goes.
        definition: what to build.
        tag: the version's tag.
        uri: the libvirt connection of the store; two builds of one version exclude each other.
        build_args: build arguments; they go before the definition's.
        builder: a disk builder's name in place of the definition's.
        no_cache: build every layer and the disk anew.

    Raises:
        UsageError: the definition and the arguments cannot be built.
        PoclabError: the version exists and would become another one, or the build failed; the
            message names the log.
    """
    ref = Ref(definition.name, check_tag(tag))
    if builder not in (None, AUTO):
        named(builder)  # an unknown one is refused before anything is built
    if build_args and definition.container is not None:
        raise UsageError(
            f"{ref.image} takes no build arguments",
            why=f"its container image is taken as it is: {definition.container}",
        )
    _refuse_other(store, ref, no_cache)
    doing = f"poclab image build {ref.image} --tag {ref.tag}"
    with locks.hold(str(ref), uri=uri, doing=doing, wait=_PATIENCE, kind="image"):
        # Again: another build of it may have ended while this one waited to begin.
        _refuse_other(store, ref, no_cache)
        log = new_log(ref, doing)
        build = _Build(store, definition, ref, log)
        with naming(log):
            return build.run(dict(build_args or {}), builder or definition.builder, no_cache, uri)


def _refuse_other(store: Store, ref: Ref, no_cache: bool) -> None:
    """Refuse a version that no build can be the same as: it was imported, or is to be new."""
    found = None if no_cache or not store.has(ref) else store.get(ref).origin
    if found is None or found.kind != "built" or "format" not in found.inputs:
        store.refuse_existing(ref)


class _Build:
    """One build."""

    def __init__(self, store: Store, definition: ImageFile, ref: Ref, log: Path) -> None:
        self._store = store
        self._definition = definition
        self._ref = ref
        self._log = log
        self._before = Earlier(store, definition, ref)
        self._times: list[str] = []

    def run(
        self, build_args: Mapping[str, str], builder_name: str, no_cache: bool, uri: str
    ) -> Version:
        """Do it all."""
        begin = time.monotonic()
        for name in podman.remove_leftovers():
            events.debug(f"removed container {name}, left by an interrupted build")
        args = self._definition.build_args_for(self._ref.tag) | dict(build_args)
        with self._timed("container image"):
            image = self._container_image(args, no_cache)
        builder, reason = self._choose(builder_name, image, no_cache)
        builder.check(self._request(builder, image, self._log.parent))
        doing = f"poclab image build {self._ref.image} --tag {self._ref.tag}"
        alone = f"of {image.id[:12]} by {builder.name}"
        with locks.hold(alone, uri=uri, doing=doing, wait=_PATIENCE, kind="disk"):
            inputs = self._inputs(builder, image)
            found = None if no_cache else self._before.find(inputs)
            if found:
                self._log.unlink(missing_ok=True)  # of no use, and it would push out another
                return found
            last = self._before.seconds(builder.name)
            estimate = "" if last is None else f"; the last disk took {format_seconds(last)}"
            events.note(f"disk builder: {builder.name} ({reason}){estimate}")
            version = self._disk(builder, image, inputs, args)
        total = format_seconds(time.monotonic() - begin)
        size = format_size(version.size)
        events.note(f"built {self._ref}, {size}, in {total} ({', '.join(self._times)})")
        return version

    def _choose(self, name: str, image: ImageInfo, no_cache: bool) -> tuple[Builder, str]:
        """The builder; for `auto` the one that made a disk of the same container image before."""
        user = self._definition.user
        earlier = self._before.of_image(image.id) if name == AUTO and not no_cache else None
        if earlier and earlier.origin.builder in BUILDERS:
            reason = f"as for {earlier.ref}, which is of the same container image"
            return builder_for(earlier.origin.builder, image, user=user)[0], reason
        return builder_for(name, image, user=user, builder_image=self._definition.builder_image)

    def _inputs(self, builder: Builder, image: ImageInfo) -> dict[str, str]:
        """All that decides about the disk; `build_cache.INPUTS` has their names."""
        inputs = builder.inputs(self._request(builder, image, self._log.parent))
        inputs |= {"image_id": image.id, "builder": builder.name}
        if self._definition.container:
            # Some builders write the name into the disk, for updates from there.
            inputs["container"] = self._definition.container
        return inputs

    def _disk(
        self,
        builder: Builder,
        image: ImageInfo,
        inputs: Mapping[str, str],
        args: Mapping[str, str],
    ) -> Version:
        """Make the disk and publish it."""
        definition = self._definition
        with self._store.workdir() as work:
            begin = time.monotonic()
            with self._timed("disk"):
                built = builder.build(self._request(builder, image, work))
            seconds = time.monotonic() - begin
            with self._timed("check"):
                events.step("check the disk", disk=str(built.disk))
                size = verified_size(built.disk)
                root = profile_guess.root_filesystem(built.disk)
            if root not in ("", inputs.get("rootfs", "")):
                text = f"the root file system is {root}, not {inputs.get('rootfs')}"
                events.note(f"{text}: a disk.yaml in the image decides")
            given = {**inputs, **built.inputs}
            if root:
                # Beside what was asked for, which is what builds are compared by.
                given[ROOT_FILE_SYSTEM] = root
            if args:
                given["build_args"] = " ".join(f"{k}={v}" for k, v in sorted(args.items()))
            labels = kept_labels(image.labels)
            with self._timed("publish"):
                return self._store.publish(
                    self._ref,
                    built.disk,
                    virtual_size=size,
                    profile=definition.profile,
                    origin=Origin("built", image.name, image.digest, builder.name, given),
                    user=definition.user,
                    labels=labels | {SECONDS: f"{seconds:.1f}"},
                )

    # --- the container image -----------------------------------------------------------

    def _container_image(self, args: Mapping[str, str], no_cache: bool) -> ImageInfo:
        definition = self._definition
        name = f"localhost/poclab/{self._ref}"
        if definition.container is not None:
            return self._existing(definition.container, name)
        if definition.containerfile is None:
            raise UsageError(f"{definition.name} has neither a Containerfile nor a container image")
        events.step("build the container image", image=name)
        return podman.build(
            definition.directory,
            definition.containerfile,
            name,
            args,
            _podman_line,
            self._log,
            no_cache,
        )

    def _existing(self, reference: str, name: str) -> ImageInfo:
        """The container image of the definition, pulled unless it is there."""
        if not podman.exists(reference):
            events.step("pull the container image", image=reference)
            lines: list[str] = []

            def line(text: str) -> None:
                lines.append(text)
                _podman_line(text)

            argv = [*podman.podman(), "pull", "--", reference]
            code = runner().stream(argv, line, log=self._log)
            if code != 0:
                said = [text for text in lines if text.strip()]
                errors = [text for text in said if text.lower().startswith("error")]
                raise PoclabError(
                    f"{reference} cannot be pulled (log: {self._log})",
                    why=(errors or said or [f"exit status {code}"])[-1].strip()[:400],
                    fix="check its name and that its registry can be reached, or load it "
                    "first: podman load --input FILE",
                )
        image = podman.inspect(reference)
        if "@" not in reference:
            return image
        # A name with a digest cannot be given to an image in another storage.
        try:
            runner().run([*podman.podman(), "tag", image.id, name], timeout=60)
        except CommandFailed as error:
            raise PoclabError("podman tag failed", why=error.result.last_line) from error
        return ImageInfo(image.id, name, image.digest, image.labels, image.size)

    def _request(self, builder: Builder, image: ImageInfo, work: Path) -> BuildRequest:
        definition = self._definition
        return BuildRequest(
            image=image.name,
            image_id=image.id,
            workdir=work,
            log=self._log,
            rootfs=definition.rootfs,
            disk_size=definition.disk,
            kernel_args=definition.kernel_args,
            blueprint=definition.blueprint,
            builder_image=definition.builder_image,
            builder_args=definition.builder_args,
            expected=self._before.seconds(builder.name),
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._times.append(f"{what} {format_seconds(time.monotonic() - begin)}")


def _podman_line(text: str) -> None:
    if step := _STEP.match(text):
        events.progress(step[3], float(step[1]), float(step[2]))
    elif text.strip():
        events.progress(text.strip())


def kept_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Select the labels that say what an image is, as many and as long as a manifest can hold.

    Those that the specification defines come first.
    """
    ours = [key for key in labels if key.startswith(_OCI)]
    fitting = [key for key in ours if len(key) <= LABEL_LENGTH]
    kept = sorted(fitting, key=lambda key: (key not in _FIRST, key))[:LABELS]
    if len(kept) < len(ours):
        events.note(
            f"labels of the container image left out: {len(ours) - len(kept):,}; a version keeps"
            f" {LABELS} with names of at most {LABEL_LENGTH:,} characters"
        )
    return {key: stored(labels[key], LABEL_LENGTH) for key in kept}


# --- the disk ---------------------------------------------------------------------------


def verified_size(path: Path) -> int:
    """Check a disk that a builder made.

    Returns:
        Bytes the guest sees.

    Raises:
        PoclabError: it is no sound qcow2 file of its own, or has no GPT.
    """
    info = inspection.inspect_file(path, "qcow2")
    pool_disks.check(path)
    # UEFI 2.10, 5.3.2: the GPT's header is the second sector and begins with this signature.
    if _head(path)[512:520] != b"EFI PART":
        raise PoclabError(
            "the builder made a disk without a partition table",
            why="there is no GPT",
            fix="see the log for what it did",
        )
    return info.virtual_size


def _head(path: Path) -> bytes:
    """The first two sectors of a qcow2 disk."""
    head = path.with_name(f"{path.name}.head")
    argv = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=2"]
    try:
        runner().run([*argv, f"if={path.absolute()}", f"of={head.absolute()}"], timeout=60)
        return head.read_bytes()
    except CommandFailed as error:
        raise PoclabError("the disk cannot be read", why=error.result.last_line) from error
    finally:
        head.unlink(missing_ok=True)


# --- the log ----------------------------------------------------------------------------


def new_log(ref: Ref, doing: str) -> Path:
    """Begin the log of a build, and remove the oldest ones of its image.

    Its first line is what is done, a command. Its name is `build-IMAGE.TAG-TIME-PID.log`: an
    image's name holds no dot.
    """
    directory = paths.private_dir(paths.state_dir() / "logs")
    old = sorted(directory.glob(f"build-{ref.image}.*.log"), key=_age)
    for path in old[: max(0, len(old) - LOGS_KEPT + 1)]:
        path.unlink(missing_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    # A tag may have 128 characters, which with the rest is below the 255 of a file's name.
    log = directory / f"build-{ref.image}.{ref.tag}-{stamp}-{os.getpid()}.log"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{doing}\n")
    events.debug(f"log: {log}")
    return log


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def naming(log: Path) -> Iterator[None]:
    """Have every failure's message name the log, which gets the failure too."""
    try:
        yield
    except PoclabError as error:
        _note(log, str(error))
        if not isinstance(error, UsageError) and str(log) not in str(error):
            error.what = f"{error.what} (log: {log})"
        raise
    except BaseException as error:
        _note(log, f"ended by {type(error).__name__}")
        raise


def _note(log: Path, text: str) -> None:
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        events.debug(f"{log} cannot be written: {error}")
