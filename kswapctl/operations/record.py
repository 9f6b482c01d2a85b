"""The forgetting record: what was asked, done, measured, and what remains; and the check that it was not edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kswap_registry import Event, Registry, Version

from kswapctl.audit.verdict import AUDIT_V1, Measure, as_json, judge
from kswapctl.errors import IntegrityError, UsageError, first_line
from kswapctl.export.files import outside, require_file, written_whole
from kswapctl.export.statement import make_statement, seal, unseal
from kswapctl.operations.home import environment
from kswapctl.operations.residue import find_remains
from kswapctl.spec import listed

LIMITATIONS = (
    "A record says what was done and measured here. It proves nothing about copies elsewhere, "
    "and is no statement about any law."
)


@dataclass(frozen=True)
class Checked:
    """A record that holds."""

    version: str
    forgotten: tuple[str, ...]
    verdict: str
    residue: str
    earlier: tuple[str, ...]
    """What audits before the recorded one said."""
    signed: bool
    """Whether a signature was checked."""
    known: bool
    """Whether the registry has the very audit that it tells of."""


def write_record(
    registry: Registry, version: Version, output: Path, key: Path | None, request: str, overwrite: bool
) -> dict[str, Any]:
    """Write the record of ``version``'s last audit; ``request`` is the asker's own reference, such as a ticket."""
    outside(registry.folder, output)
    *earlier, event = _audits(registry, version)
    subjects = {f"weights of {version.ref}": version.weights}
    subjects |= {f"adapter of {v.ref}": v.adapter for v in registry.stack(version)}
    remains = find_remains(registry, event.payload["original"], event.payload["classes"])
    predicate = {
        "request": request,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version.ref,
        "base": registry.model(version.model).fingerprint,
        "operations": [_operation(v) for v in registry.stack(version)],
        "thresholds": as_json(AUDIT_V1),
        "audit": dict(event.payload) | {"time": event.time, "history": event.digest},
        "earlier audits": [_briefly(e) for e in earlier],
        "residue": {"level": remains.level, "held": list(remains.held), "shipped": list(remains.shipped)},
        "environment": environment(),
        "limitations": LIMITATIONS,
    }
    envelope = seal(make_statement(subjects, predicate), key)
    with written_whole(output, overwrite) as temporary:
        temporary.write_text(json.dumps(envelope, indent=2) + "\n")
    return predicate


def verify_record(file: Path, public_key: Path | None, registry: Registry | None) -> Checked:
    """Check the signature (with a key), that the verdict follows from its levels, and that the history has it."""
    require_file(file)
    try:
        envelope = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        why = "no text" if isinstance(error, UnicodeDecodeError) else f"no JSON: {first_line(error)}"
        raise IntegrityError(f"{file.name} is no record: it is {why}", "name what kswapctl record wrote") from error
    if not isinstance(envelope, Mapping):
        raise IntegrityError(f"{file.name} is no record", "name what kswapctl record wrote")
    statement = unseal(envelope, public_key)
    try:
        predicate = statement["predicate"]
        audit = predicate["audit"]
        follows = _judged(audit)
        found = Checked(
            predicate["version"],
            tuple(audit["classes"]),
            audit["verdict"],
            predicate["residue"]["level"],
            earlier_verdicts(predicate),
            public_key is not None,
            registry is not None,
        )
    except KeyError as error:
        raise IntegrityError(f"{file.name} lacks {error}") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise IntegrityError(f"{file.name} is not as kswapctl writes a record ({error})", "it was edited") from error
    if follows != audit["verdict"]:
        raise IntegrityError(f"the record says {audit['verdict']}, but its measures say {follows}", "it was edited")
    if registry is not None:
        _check_history(registry, predicate)
    return found


def _audits(registry: Registry, version: Version) -> list[Event]:
    """All audits of ``version``, the last of which is the recorded one; at least one."""
    if not version.number:
        raise UsageError(f"{version.ref} is the base: nothing was forgotten", "name a version: kswapctl list")
    audits = [e for e in registry.events(version.model) if e.action == "audit" and e.number == version.number]
    if not audits:
        raise UsageError(f"{version.ref} was not audited", f"kswapctl audit {version.ref}")
    return audits


def _briefly(event: Event) -> dict[str, Any]:
    """An earlier audit, so that nobody audits until the verdict suits and tells of that one alone."""
    told = {k: event.payload.get(k) for k in ("verdict", "tier", "reference", "classes")}
    return told | {"time": event.time, "history": event.digest}


def earlier_verdicts(predicate: Mapping[str, Any]) -> tuple[str, ...]:
    """A line for each audit before the recorded one, with the classes that it was about."""
    return tuple(
        f"{a['verdict']} on {listed(a['classes'])} ({a['tier']}, {a['reference']})" for a in predicate["earlier audits"]
    )


def _operation(version: Version) -> dict[str, Any]:
    return {
        "version": version.ref,
        "kind": version.kind,
        "method": version.method,
        "classes": version.spec["classes"],
        "time": version.created,
        "adapter": version.adapter,
        "data": version.state["record"]["data"],
    }


def _judged(audit: Mapping[str, Any]) -> str:
    """The verdict that the recorded levels give."""
    measures = [
        Measure(id_, "", m["value"], None, None, m["level"], m["votes"]) for id_, m in audit["measures"].items()
    ]
    return judge(measures, audit["fewest"], AUDIT_V1).answer


def _check_history(registry: Registry, predicate: Mapping[str, Any]) -> None:
    """The registry's history has this audit, with these values, and before it the same ones of this version."""
    told = dict(predicate["audit"])
    digest = told.pop("history", "")
    told.pop("time", None)
    ref = str(predicate["version"])
    model = ref.partition("@")[0]
    audits = [e for e in registry.events(model) if e.action == "audit" and f"{model}@{e.number}" == ref]
    place = next((index for index, e in enumerate(audits) if e.digest == digest), None)
    if place is None or dict(audits[place].payload) != told:
        raise IntegrityError(
            f"this registry's history has no such audit of {predicate['version']}",
            "the record is of another registry, or was edited",
        )
    if predicate["earlier audits"] != [_briefly(e) for e in audits[:place]]:
        raise IntegrityError(
            f"the audits before are not those of {predicate['version']} in this registry's history",
            f"it has {place}; the record was edited",
        )
