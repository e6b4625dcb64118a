"""MLflow, as a projection of the archive."""
