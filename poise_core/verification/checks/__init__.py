"""The checks of the gate, one file each."""
