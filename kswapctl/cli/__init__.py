"""The command line: parse, call one operation, print. Nothing here imports torch before a command needs it."""

from kswapctl.cli.app import app, main

__all__ = ["app", "main"]
