"""Scores of videos of moving digits: pure functions of pixels, tracks and features, one kind a file."""
