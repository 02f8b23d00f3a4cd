"""What `bootc status --format=json --format-version=1` says, read with suspicion. Pure.

The schema is bootc's own (docs/src/host-v1.schema.json): an object of apiVersion
`org.containers.bootc/v1` whose `status` has the deployments `staged`, `booted` and `rollback`,
each null or with `image.image.{image,transport}` and `image.imageDigest`. It comes from a guest, so
nothing in it is believed that does not look as it should.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_API = "org.containers.bootc/v1"  # v1alpha1 has the same fields
_LONGEST = 1024 * 1024  # characters; a real one has two thousand
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DEFAULT_TAG = ":latest"  # bootc adds it to some references and takes it from others


@dataclass(frozen=True)
class Entry:
    """A deployment: an operating system that is on the disk.

    Attributes:
        transport: how its image was fetched: "registry", "oci" ...
        reference: the image in that transport's words, without a default tag.
        digest: the digest of the image's manifest, `sha256:HEX`; empty for one that is of no image.
    """

    transport: str = ""
    reference: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Status:
    """The deployments of a guest.

    Attributes:
        booted: what it runs; None for a system that bootc did not deploy.
        staged: what its next boot will run, if that was asked for.
        rollback: what it ran before.
        queued: whether its next boot will run `rollback`.
    """

    booted: Entry | None
    staged: Entry | None = None
    rollback: Entry | None = None
    queued: bool = False


def parse(text: str) -> Status:
    """Read what `bootc status` printed.

    Raises:
        ValueError: it is not what bootc prints; the text says in what.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error
    host = _object(found, "the whole")
    if not str(host.get("apiVersion")).startswith(_API):
        raise ValueError(f"apiVersion is not {_API}")
    status = _object(host.get("status"), "status")
    spec = host.get("spec")
    order = spec.get("bootOrder") if isinstance(spec, dict) else None
    return Status(
        booted=_entry(status, "booted"),
        staged=_entry(status, "staged"),
        rollback=_entry(status, "rollback"),
        queued=status.get("rollbackQueued") is True or order == "rollback",
    )


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object")
    return value


def _entry(status: dict[str, Any], name: str) -> Entry | None:
    value = status.get(name)
    if value is None:
        return None
    image = _object(value, name).get("image")
    if image is None:
        return Entry()  # an ostree deployment that is of no container image
    image = _object(image, f"{name}.image")
    source = _object(image.get("image"), f"{name}.image.image")
    texts = source.get("transport"), source.get("image"), image.get("imageDigest")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} has no transport, image or imageDigest")
    transport, reference, digest = map(str, texts)
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name} has no sha256 digest")
    return Entry(transport, reference.removesuffix(_DEFAULT_TAG), digest)
