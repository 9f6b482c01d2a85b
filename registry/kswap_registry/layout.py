"""What lies in a registry's folder."""

from __future__ import annotations

DATABASE = "registry.db"
BLOBS = "blobs"
TEMPORARY = "tmp"
QUARANTINE = "quarantine"
KEY = "key"
LOCK = ".lock"
