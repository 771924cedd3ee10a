"""From a candidate to its verdict: predictions, metrics, comparisons, gates."""
