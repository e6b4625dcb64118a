"""POISE evolves the reinforcement-learning algorithms that train language models."""
