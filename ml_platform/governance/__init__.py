"""Questions about any version: status, explanation, reproduction, comparison, erasure."""
