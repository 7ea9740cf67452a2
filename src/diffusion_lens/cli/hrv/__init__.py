"""`diffusion-lens hrv`: head relevance vectors; build, show, weaken, steer."""
