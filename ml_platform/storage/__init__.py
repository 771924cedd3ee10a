"""Adapters to storage: folders, buckets, Delta Lake, MLflow."""
