"""The models of this deployment. Each has one file, which declares it and does not import Dagster."""
