"""Training of the toy models: `python -m diffusion_lens.toys.train --model NAME --out DIR`."""
