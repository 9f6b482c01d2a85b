"""The demo command."""

COMMANDS: dict = {}
