"""Experiments beside the search loop: the examination of a champion, the comparison of arms, the tuning of the baseline."""

"""Experiments beside the search loop: replication of champion candidates, comparison of arms, tuning of the baseline."""
