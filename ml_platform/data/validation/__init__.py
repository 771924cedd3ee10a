"""Decide whether a file is acceptable: size, readability, schema, values."""
