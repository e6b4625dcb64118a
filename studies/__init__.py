"""Studies: one module each, run with ``python -m``, that leaves a page and a figure under ``docs/results/``."""
