"""Statistics of measurements: intervals, noise, decisions to stop, promotion."""
