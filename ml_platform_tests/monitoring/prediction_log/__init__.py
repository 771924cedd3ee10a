"""Tests of ml_platform/monitoring/prediction_log/."""
