"""Scoring trained policies on the benchmarks of a protocol."""
