"""Data for training and scoring: the moving-digits renderer, its prompt grammar and the cached latents."""
