"""From a pinned dataset to a candidate: fit, canonical bytes, provenance."""
