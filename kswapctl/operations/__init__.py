"""Use cases: with the command line, the only code that sees the registry. Import the one you need: some need torch."""
