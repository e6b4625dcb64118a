"""Experiments beside the search loop: the replication of a champion candidate, the comparison of arms, the tuning of the baseline."""
