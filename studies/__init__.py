"""Studies, each a module that is run with ``python -m`` and writes a page and a figure under ``docs/results/``."""
