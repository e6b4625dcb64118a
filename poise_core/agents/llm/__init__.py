"""The LLM-backed roles, and the calls to a language model that they make."""
