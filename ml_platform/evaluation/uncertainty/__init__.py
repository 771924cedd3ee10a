"""Confidence intervals for every metric: analytic where a formula exists, by bootstrap elsewhere."""
