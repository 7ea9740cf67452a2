"""Training of the toy models: `python -m diffusion_lens.training --model NAME --out DIR`."""
