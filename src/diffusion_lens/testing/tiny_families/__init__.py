"""Tiny configs of the described denoisers, and a call that fits each."""
