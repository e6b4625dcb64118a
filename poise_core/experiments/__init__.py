"""Experiments beside the search loop: the replication of a champion candidate, and the comparison of arms."""
