"""Studies that say whether the evidence can be trusted: each a command that writes a page under ``docs/results``."""
