"""The public border: arguments are checked once, against their annotations, before a function runs.

Nothing below the border checks types again, and no hook is decorated.
"""

from diffusion_lens.border.checking import public as public
from diffusion_lens.border.ranges import LARGEST_SIZE as LARGEST_SIZE
from diffusion_lens.border.ranges import Amount as Amount
from diffusion_lens.border.ranges import Between as Between
from diffusion_lens.border.ranges import Count as Count
from diffusion_lens.border.ranges import Fraction as Fraction
from diffusion_lens.border.ranges import Index as Index
from diffusion_lens.border.ranges import Level as Level
from diffusion_lens.border.ranges import Number as Number
from diffusion_lens.border.ranges import Positive as Positive
from diffusion_lens.border.ranges import Seed as Seed
from diffusion_lens.border.ranges import Size as Size
from diffusion_lens.border.settings import PipelineSetting as PipelineSetting
