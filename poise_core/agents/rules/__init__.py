"""The reflector that needs no language model."""
