"""`python -m diffusion_lens.cli`."""

from diffusion_lens.cli.commands import main

if __name__ == "__main__":
    main()
