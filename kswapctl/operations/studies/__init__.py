"""Studies: methods x class splits x orders x seeds, run as cells that any process may claim, summed up in a table."""
