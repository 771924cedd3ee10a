"""The process that owns the workers, selects versions and takes admin calls."""
