"""How the toy models are trained: `python -m diffusion_lens.toys.train --model shapes-unet --out DIR`."""
