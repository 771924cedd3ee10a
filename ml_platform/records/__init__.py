"""Frozen values that one room passes to another: one file for each stage of a model's life."""
