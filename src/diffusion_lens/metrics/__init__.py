"""Scores of plain arrays and tensors; nothing here knows of models."""
