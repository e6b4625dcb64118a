"""Prefect flows: what runs, in which order, and what runs side by side."""

from poise_core.surroundings import settle

settle()  # a worker of Prefect imports this package, and no command line has done it there
