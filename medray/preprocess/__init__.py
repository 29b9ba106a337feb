"""Pure array functions: resample, window, crop, pad, normalise."""
