"""Preprocessing compiled to dict look-ups."""
