"""Training of diagonally distilled models: headless, on top of `diag_core`, which it imports by name."""
