"""Statements in signed envelopes: in-toto Statement v1 within DSSE, ECDSA P-256 where a key is given.

https://github.com/in-toto/attestation/blob/main/spec/v1, https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kswapctl.errors import DataError, IntegrityError, NotFoundError, UsageError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://kswapctl.dev/forgetting-record/v1"

Envelope = dict[str, Any]


def make_statement(subjects: Mapping[str, str], predicate: Mapping[str, Any], kind: str = PREDICATE_TYPE) -> bytes:
    """The payload: what (name to SHA-256) the predicate is about, and the predicate, which is of ``kind``."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
        "predicateType": kind,
        "predicate": predicate,
    }
    return json.dumps(statement, sort_keys=True, ensure_ascii=False).encode()


def seal(payload: bytes, key: Path | None) -> Envelope:
    """The envelope of ``payload``, with one signature, or none without a key."""
    signatures = [] if key is None else [sign(payload, key)]
    return {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": signatures}


def unseal(envelope: Mapping[str, Any], public_key: Path | None, wanted: str = PREDICATE_TYPE) -> dict[str, Any]:
    """The statement of the ``wanted`` kind in ``envelope``; with a key, only if one of its signatures is of that key.

    The signature is checked over the payload's own bytes, before anything in them is read.
    """
    try:
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise IntegrityError(f"it is of the type {envelope['payloadType']!r}, not {PAYLOAD_TYPE!r}")
        payload = base64.b64decode(envelope["payload"], validate=True)
        if public_key is not None:
            _check_signatures(
                payload, [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]], public_key
            )
        statement: dict[str, Any] = json.loads(payload)
        kind = (statement["_type"], statement["predicateType"])
    except (KeyError, TypeError, ValueError, RecursionError, binascii.Error) as error:
        raise IntegrityError(f"it is no DSSE envelope with a statement in it ({error})") from error
    if kind != (STATEMENT_TYPE, wanted):
        raise IntegrityError(f"it is a {kind[1]}, not a {wanted}", "it may be of a newer release")
    return statement


def sign(payload: bytes, key: Path) -> dict[str, str]:
    """One signature of ``payload`` in DSSE's form; the key is an unencrypted PEM file, ECDSA P-256."""
    elliptic, hashes, serialization = _cryptography()
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:
        raise DataError(f"{key.name} is no unencrypted private key in PEM", _HOW) from error
    if not isinstance(private, elliptic.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
        raise DataError(f"{key.name} is no ECDSA P-256 key", _HOW)
    signature = private.sign(_encoded(payload), elliptic.ECDSA(hashes.SHA256()))
    return {"keyid": _name(private.public_key(), serialization), "sig": base64.b64encode(signature).decode()}


_HOW = "make one: openssl ecparam -genkey -name prime256v1 -noout -out key.pem"


def _check_signatures(payload: bytes, signatures: list[bytes], public_key: Path) -> None:
    from cryptography.exceptions import InvalidSignature

    elliptic, hashes, serialization = _cryptography()
    try:
        public = serialization.load_pem_public_key(_read(public_key))
    except ValueError as error:
        raise DataError(f"{public_key.name} is no public key in PEM", "openssl ec -in key.pem -pubout") from error
    if not isinstance(public, elliptic.EllipticCurvePublicKey):
        raise DataError(f"{public_key.name} is no ECDSA key", _HOW)
    for signature in signatures:
        try:
            public.verify(signature, _encoded(payload), elliptic.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return
    raise IntegrityError(
        f"no signature is by {public_key.name}: it is by another key, of other bytes, or there is none"
    )


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, which ties the type to the payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _name(public: Any, serialization: Any) -> str:
    encoded: bytes = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"no such key: {path}", "name a PEM file") from error


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise UsageError("signatures need an extra package", "in a clone: uv sync --extra sign") from error
    return ec, hashes, serialization
