"""From a data file to a champion in the registry, with evidence that can be verified."""
