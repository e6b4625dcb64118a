"""Experiments beside the search loop: the examination of a champion, the comparison of arms, the tuning of the baseline."""
