"""What was built before: a version of the same inputs need not be built again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from poclab.containers import podman
from poclab.core import events
from poclab.core.errors import PoclabError
from poclab.core.process import runner
from poclab.model import shapes
from poclab.model.version import Ref, Version
from poclab.schema.image import ImageFile
from poclab.store.versions import Store

# The label with the seconds that the disk took: what the next one is expected to take.
SECONDS = "poclab.disks.pool_disks-seconds"
_SECONDS = shapes.decimal(shapes.real(0, 10**6))
# The inputs of a build, and how they are called where they differ. Versions that agree in all of
# them are the same.
INPUTS = {
    "format": "how this poclab builds",
    "type": "the output's type",
    "image_id": "the container image",
    "builder": "the builder",
    "builder_digest": "the builder's image",
    "builder_version": "the builder's version",
    "rootfs": "rootfs",
    "disk_size": "disk",
    "kernel_args": "kernel_args",
    "builder_args": "builder_args",
    "blueprint": "the blueprint",
    "container": "container",
    "user": "user",
    "profile": "profile",
    "e2fsprogs": "this host's e2fsprogs",
    "loader": "this host's systemd-boot",
}
_SHORT = 40  # characters of a value that helps in a message


class Earlier:
    """The versions of an image that were built before.

    Args:
        store: where they are.
        definition: what the image is to be now.
        ref: the version that is to be built.
    """

    def __init__(self, store: Store, definition: ImageFile, ref: Ref) -> None:
        self._store = store
        self._definition = definition
        self._ref = ref

    def find(self, wanted: Mapping[str, str]) -> Version | None:
        """A version of the same inputs, under the name that is asked for.

        The one of another tag gives its disk.

        Raises:
            PoclabError: there is one of this name with other inputs.
        """
        if self._store.has(self._ref):
            found = self._store.get(self._ref)
            if names := self._differing(found, wanted):
                self._restore_name(found)
                raise self._differs(found, wanted, names)
            events.note(f"{self._ref} is already built")
            return found
        twin = next((item for item in self._built() if not self._differing(item, wanted)), None)
        if twin is None:
            return None
        version = self._store.tag(twin.ref, self._ref)
        events.note(f"{self._ref} is already built: it is the same as {twin.ref}")
        return version

    def of_image(self, image_id: str) -> Version | None:
        """The newest version of a container image."""
        ours = (item for item in self._built() if item.origin.inputs.get("image_id") == image_id)
        return next(ours, None)

    def seconds(self, builder: str) -> float | None:
        """What the newest disk of the image took a builder, or None."""
        for item in self._built():
            if item.origin.builder == builder:
                with suppress(KeyError, ValueError):
                    return _SECONDS(item.labels[SECONDS])
        return None

    def _built(self) -> list[Version]:
        """The newest first."""
        found = [item for item in self._store.versions() if item.ref.image == self._ref.image]
        return [item for item in reversed(found) if item.origin.kind == "built"]

    def _differing(self, version: Version, wanted: Mapping[str, str]) -> list[str]:
        """The inputs in which a version differs from what is wanted."""
        old, new = _all_inputs(version), self._with_login(wanted)
        names = [name for name in INPUTS if old.get(name, "") != new.get(name, "")]
        if "builder_digest" in names and "builder_digest" not in new:
            names.remove("builder_digest")  # the builder is not here any more: nobody can tell
        return names

    def _with_login(self, inputs: Mapping[str, str]) -> dict[str, str]:
        definition = self._definition
        return {**inputs, "user": definition.user, "profile": definition.profile.value}

    def _differs(
        self, found: Version, wanted: Mapping[str, str], names: Sequence[str]
    ) -> PoclabError:
        old, new = _all_inputs(found), self._with_login(wanted)
        changed = ", ".join(INPUTS[name] + _values(old, new, name) for name in names)
        return PoclabError(
            f"{self._ref} exists already, built from other inputs",
            why=f"a version never changes, and this one differs in {changed}",
            fix=f"choose another tag, or remove it: poclab image rm {self._ref}",
        )

    def _restore_name(self, found: Version) -> None:
        """Let the container image's name mean what it meant, where that is still there."""
        old, name = found.origin.inputs.get("image_id", ""), f"localhost/poclab/{self._ref}"
        if old and self._definition.container is None and podman.exists(old):
            runner().run([*podman.podman(), "tag", old, name], check=False, timeout=60)


def _all_inputs(version: Version) -> dict[str, str]:
    inputs = {"user": version.user, "profile": version.profile.value}
    return {**version.origin.inputs, **inputs}


def _values(old: Mapping[str, str], new: Mapping[str, str], name: str) -> str:
    """Two values beside each other, where both are short enough to help."""
    pair = [values.get(name) or "none" for values in (old, new)]
    return f" ({' -> '.join(pair)})" if all(len(text) <= _SHORT for text in pair) else ""
