"""Where a test may kill, fail or interrupt the commands that write outside the registry, or take something in."""

from kswap_registry.faults import declare, point

__all__ = ["point"]

declare(
    {
        "merge.after_write": "the weights are written under a temporary name",
        "merge.after_rename": "the file has its name, the history does not tell of it yet",
        "export.after_write": "the network is written under a temporary name, not compared yet",
        "export.after_check": "onnxruntime agrees, the file has its temporary name",
        "export.after_rename": "the file has its name, the history does not tell of it yet",
        "bundle.after_write": "the bundle is written under a temporary name",
        "bundle.after_rename": "the bundle has its name, the history does not tell of it yet",
        "import.after_fetch": "every file is copied to tmp/ and has its hash",
        "import.after_check": "the stack composes to what it should; nothing is registered",
        "push.after_files": "files are at the destination, its list does not name them yet",
        "push.after_list": "the destination has the new list, the history does not tell of it yet",
    }
)
