"""Distillation at Wan's size: prompts and their embeddings, checks before anything is loaded, the stages, the export.

The engine (losses, rollouts, optimizers, the loop) is the one that trains the moving digits; here are its inputs and
results.
"""
