"""Configurations that ship with the package: one a file, found by name (``--config=digits``)."""
