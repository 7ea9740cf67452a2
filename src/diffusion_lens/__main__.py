"""`python -m diffusion_lens`: the command line."""

from diffusion_lens.cli import main

if __name__ == "__main__":
    main()
