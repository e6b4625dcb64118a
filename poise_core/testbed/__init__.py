"""The testbed of the laptop presets: recipes of the base policies, panel, calibration."""
