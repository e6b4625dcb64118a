"""Protocol, benchmarks, scores and their uncertainty."""
