"""Small trained diffusion models with exact ground truth, and the world that they draw."""
