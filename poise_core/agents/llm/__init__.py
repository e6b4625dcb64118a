"""The roles that a language model plays, and the wire to it."""
