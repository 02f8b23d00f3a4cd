"""Times as records hold them."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """The time as records hold it: RFC 3339, UTC, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
