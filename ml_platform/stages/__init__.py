"""The stages of a model's life, one file each: plain Python, no Dagster; one stage never imports another."""
