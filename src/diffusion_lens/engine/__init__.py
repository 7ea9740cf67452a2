"""Attaching hooks to a running model, and what happens when they fire."""
