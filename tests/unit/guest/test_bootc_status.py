"""What a guest's `bootc status` says is read as bootc documents it; nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poclab.guest.bootc_status import Entry, Status, parse

DIGEST = f"sha256:{'0a' * 32}"


def entry(reference: str = "quay.io/shop/site:v1", transport: str = "registry") -> dict[str, Any]:
    """A deployment, with the fields that poclab has no use for."""
    image = {
        "image": {"image": reference, "transport": transport, "signature": "insecure"},
        "version": "44.1",
        "timestamp": "2026-01-01T00:00:00Z",
        "imageDigest": DIGEST,
        "architecture": "amd64",
    }
    ostree = {"stateroot": "default", "checksum": "0a" * 32, "deploySerial": 0}
    return {"image": image, "cachedUpdate": None, "pinned": False, "ostree": ostree}


def host(**status: Any) -> dict[str, Any]:
    """The whole, of a guest that runs one deployment."""
    whole = {"staged": None, "booted": entry(), "rollback": None, "rollbackQueued": False}
    spec = {"image": {"image": "quay.io/shop/site:v1", "transport": "registry"}}
    return {
        "apiVersion": "org.containers.bootc/v1",
        "kind": "BootcHost",
        "metadata": {"name": "host"},
        "spec": spec | {"bootOrder": "default"},
        "status": whole | {"type": "bootcHost"} | status,
    }


BOOTED = Entry("registry", "quay.io/shop/site:v1", DIGEST)


def test_a_guest_that_runs_what_it_was_installed_with() -> None:
    assert parse(json.dumps(host())) == Status(BOOTED)


def test_all_three_deployments() -> None:
    text = json.dumps(host(staged=entry("/var/lib/x", "oci"), rollback=entry("quay.io/old")))
    assert parse(text) == Status(
        BOOTED, Entry("oci", "/var/lib/x", DIGEST), Entry("registry", "quay.io/old", DIGEST)
    )


def test_a_default_tag_that_bootc_adds_or_takes_is_no_difference() -> None:
    found = parse(json.dumps(host(booted=entry("/var/lib/x:latest", "oci"))))
    assert found.booted == Entry("oci", "/var/lib/x", DIGEST)


@pytest.mark.parametrize("version", ["v1", "v1alpha1"])
def test_a_rollback_that_is_queued_is_said_in_two_ways(version: str) -> None:
    whole = host(rollbackQueued=True) | {"apiVersion": f"org.containers.bootc/{version}"}
    assert parse(json.dumps(whole)).queued
    whole = host() | {"spec": {"image": None, "bootOrder": "rollback"}}
    del whole["status"]["rollbackQueued"]
    assert parse(json.dumps(whole)).queued


def test_a_system_that_bootc_did_not_deploy_has_booted_nothing() -> None:
    # As bootc prints it in a container or on a package-based system.
    text = json.dumps(host(booted=None) | {"spec": {"image": None, "bootOrder": "default"}})
    assert parse(text) == Status(None)


def test_a_deployment_of_no_image() -> None:
    assert parse(json.dumps(host(rollback=entry() | {"image": None}))).rollback == Entry()


def changed(*path: str, to: Any) -> str:
    whole = host()
    place = whole
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return json.dumps(whole)


IMAGE = ("status", "booted", "image")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (" " * (1024 * 1024 + 1), "characters"),
        ("[]", "the whole is no object"),
        ('"bootc"', "the whole is no object"),
        (changed("apiVersion", to="org.containers.bootc/v2"), "apiVersion"),
        (changed("apiVersion", to=None), "apiVersion"),
        (changed("status", to=None), "status is no object"),
        (changed("status", "booted", to="yes"), "booted is no object"),
        (changed("status", "staged", to=[]), "staged is no object"),
        (changed(*IMAGE, to=7), "booted.image is no object"),
        (changed(*IMAGE, "image", to="quay.io/x"), "booted.image.image is no object"),
        (changed(*IMAGE, "image", to={}), "booted has no"),
        (changed(*IMAGE, "imageDigest", to=None), "booted has no"),
        (changed(*IMAGE, "imageDigest", to="sha256:0a"), "no sha256 digest"),
        (changed(*IMAGE, "imageDigest", to=f"{DIGEST}\n"), "no sha256 digest"),
        (changed(*IMAGE, "imageDigest", to=DIGEST.upper()), "no sha256 digest"),
    ],
)
def test_what_is_no_status_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.sampled_from(["spec", "status", "booted", "image"]), values)))
def test_any_other_shape_is_refused_and_no_bug(changes: list[tuple[str, Any]]) -> None:
    whole = host()
    for name, value in changes:
        for place in (whole, whole.get("status"), (whole.get("status") or {})):
            if isinstance(place, dict) and name in place:
                place[name] = value
                break
    try:
        found = parse(json.dumps(whole))
    except ValueError:
        return
    assert found.booted is None or isinstance(found.booted, Entry)
