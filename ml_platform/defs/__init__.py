"""What this deployment runs: one file a model under models/, and what belongs to no model."""
