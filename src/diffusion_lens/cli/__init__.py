"""The command line, one command to a file; `diffusion-lens --help` lists them."""

from diffusion_lens.cli.commands import app as app
from diffusion_lens.cli.commands import main as main
