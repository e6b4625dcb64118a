"""The roles of one generation: proposer, screener, implementer, reflector."""
