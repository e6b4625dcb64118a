"""Experiments beside the search loop: replication of champion candidates, comparison of arms, tuning of the baseline."""
