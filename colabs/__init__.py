"""Notebooks, written as percent scripts."""
