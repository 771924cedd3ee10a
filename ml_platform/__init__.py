"""From a dropped file to a champion in the registry, with evidence that anyone can check."""
