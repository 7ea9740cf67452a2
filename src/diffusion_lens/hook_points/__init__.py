"""Names of hook points, Sites that address parts of them, and what a hook is told."""

from diffusion_lens.hook_points.context import HookContext as HookContext
from diffusion_lens.hook_points.names import match_names as match_names
from diffusion_lens.hook_points.point import Absent as Absent
from diffusion_lens.hook_points.point import HookPoint as HookPoint
from diffusion_lens.hook_points.selectors import Indices as Indices
from diffusion_lens.hook_points.selectors import Tokens as Tokens
from diffusion_lens.hook_points.selectors import contains as contains
from diffusion_lens.hook_points.selectors import steps_of as steps_of
from diffusion_lens.hook_points.site import Site as Site
from diffusion_lens.hook_points.site import Sites as Sites
