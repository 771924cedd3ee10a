"""Load a model, check requests against its contract, and predict."""
