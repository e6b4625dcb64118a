"""The roles that need no language model: ideas from the mechanism catalogue."""
