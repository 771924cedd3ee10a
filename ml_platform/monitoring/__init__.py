"""Monitoring without Dagster: alerts and the prediction log."""
