"""Modules on Dagster: resources, sensors, metadata, maintenance, run history."""
