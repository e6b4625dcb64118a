"""The static check: what a candidate file may say."""
