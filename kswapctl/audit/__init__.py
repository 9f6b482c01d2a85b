"""Attacks that ask whether the forgotten is really gone, by the protocol ``audit-v1``: one attack per file."""
