"""An analysis and an architecture for diffusion_lens, as another package brings them."""
