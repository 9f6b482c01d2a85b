"""Who made a bundle: a signed statement that names its manifest by hash, and so every byte that the manifest lists.

The same envelope as a forgetting record's (in-toto Statement in DSSE, ECDSA P-256), under another type.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from kswapctl.errors import IntegrityError, UnsafeInputError
from kswapctl.export import manifest as listing
from kswapctl.export.manifest import Manifest
from kswapctl.export.statement import PAYLOAD_TYPE, make_statement, seal, unseal
from kswapctl.models.strict import UnfitError, fit, parse

NAME = "manifest.sig.json"
"""Name of the signature in a bundle; it stands right after the manifest."""
LARGEST = 2**16
"""Bytes of a signature."""
KIND = "https://kswapctl.dev/bundle/v1"
"""What the statement calls itself: a signature of one kind is not one of another."""
_TEXT = str
_ENVELOPE = {"payloadType": PAYLOAD_TYPE, "payload": _TEXT, "signatures": [{"keyid": _TEXT, "sig": _TEXT}]}


def sign_manifest(manifest: Manifest, key: Path) -> bytes:
    """The signature of a bundle with this manifest, by the private ``key`` (PEM)."""
    statement = make_statement({listing.NAME: _digest(manifest)}, {"fingerprint": manifest.top}, KIND)
    return json.dumps(seal(statement, key), sort_keys=True).encode() + b"\n"


def check_signature(data: bytes | None, manifest: Manifest, public_key: Path | None) -> None:
    """Refuse a signature of another manifest; with a key also none, and one by another key."""
    if data is None:
        if public_key is not None:
            raise IntegrityError("the bundle is not signed", f"ask for one signed by the owner of {public_key.name}")
        return
    envelope = parse(data, NAME)
    try:
        fit(envelope, _ENVELOPE, NAME)
    except UnfitError as error:
        raise UnsafeInputError(f"{NAME} is not what this release writes: {error}", "get it again") from error
    try:
        statement = unseal(envelope, public_key, KIND)
    except IntegrityError as error:
        raise IntegrityError(f"{NAME}: {error.message}", "get it again, from somebody you trust") from error
    if statement.get("subject") != [{"name": listing.NAME, "digest": {"sha256": _digest(manifest)}}]:
        raise IntegrityError(f"{NAME} is of another manifest", "get it again, from somebody you trust")


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.dump()).hexdigest()
