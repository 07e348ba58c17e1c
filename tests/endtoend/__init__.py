"""Whole calls, in namespaces, through the real program."""
