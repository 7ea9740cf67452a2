"""Recorded activations: reading, reducing, saving, and what they will cost."""

from diffusion_lens.activation_cache.cache import ActivationCache as ActivationCache
from diffusion_lens.activation_cache.cache import readable_bytes as readable_bytes
