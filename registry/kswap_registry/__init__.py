"""A registry of model versions: who learned and forgot what, when, from which files, and how to take it back.

Stand-alone: a folder with a SQLite database, content-addressed blobs and a key. Only making a registry and moving an
older one up need more than the standard library: sqlite-utils, imported there.
"""

from .errors import (
    AlreadyExists,
    BadName,
    BadValue,
    Busy,
    CorruptBlob,
    Damaged,
    HeadMoved,
    MissingBlob,
    NewerSchema,
    NoRegistry,
    NotConfirmed,
    PurgedBlob,
    ReadOnly,
    RegistryError,
    StillNeeded,
    StorageError,
    StorageFull,
    UnknownModel,
    UnknownVersion,
    UnsafeFile,
)
from .history import Verification, verify_history
from .lock import Holder
from .operation import Operation
from .records import Attempt, Event, Model, Version
from .store import Registry

__all__ = [
    "AlreadyExists",
    "Attempt",
    "BadName",
    "BadValue",
    "Busy",
    "CorruptBlob",
    "Damaged",
    "Event",
    "HeadMoved",
    "Holder",
    "MissingBlob",
    "Model",
    "NewerSchema",
    "NoRegistry",
    "NotConfirmed",
    "Operation",
    "PurgedBlob",
    "ReadOnly",
    "Registry",
    "RegistryError",
    "StillNeeded",
    "StorageError",
    "StorageFull",
    "UnknownModel",
    "UnknownVersion",
    "UnsafeFile",
    "Verification",
    "Version",
    "verify_history",
]
