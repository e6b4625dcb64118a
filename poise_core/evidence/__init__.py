"""What measurements allow one to say: intervals, noise, decisions to stop, promotion."""
