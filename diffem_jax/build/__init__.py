"""A config's names become functions."""
