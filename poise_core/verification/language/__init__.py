"""The static check of a candidate file, which the gate runs as the check `language`."""
