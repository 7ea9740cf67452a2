"""The demo: every kind of analysis on the shipped toy models, as one page."""

from diffusion_lens.app.demo.running import DEMO_PARTS as DEMO_PARTS
from diffusion_lens.app.demo.running import Demo as Demo
from diffusion_lens.app.demo.running import run_demo as run_demo
