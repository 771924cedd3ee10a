"""The tests mirror the package; `fakes` holds the small real things that they share."""
