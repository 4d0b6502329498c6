"""Recipes: functions that return a stage's configuration."""
