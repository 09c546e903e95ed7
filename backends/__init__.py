"""Backends: what lowers a Program. They know burnish.compiler alone, and are found through entry points."""
