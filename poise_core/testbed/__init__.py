"""The toy on which the laptop presets run: base policies, panel, calibration."""
