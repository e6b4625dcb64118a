"""The catalogue of mechanisms, from which candidates are composed without a language model."""
