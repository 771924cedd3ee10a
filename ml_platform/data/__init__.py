"""From the landing zone to pinned rows: arrivals, validation, quarantine, datasets."""
