"""What analyses and guests build on, beyond the names that users hold.

An analysis needs little more than `HookedDiffusion`, `Site`, `Run` and the interventions; where it
does, it is here: words of prompts, parts of tensors, restarts in the middle of a run, concept
streams, and how a hook point is read. Analyses of this package import nothing else from the floors
below, and a test checks it, so that any of their files can be copied out and published as
someone's own.
"""

# Hook points: how one is read
from diffusion_lens.architectures.sources import AtModule as AtModule
from diffusion_lens.architectures.sources import AtScheduler as AtScheduler
from diffusion_lens.architectures.sources import HeadValues as HeadValues
from diffusion_lens.architectures.spec import Attention as Attention

# Concept streams
from diffusion_lens.concept_streams.encoding import ENCODING as ENCODING
from diffusion_lens.concept_streams.encoding import encode_concepts as encode_concepts
from diffusion_lens.concept_streams.encoding import encoder_of as encoder_of
from diffusion_lens.concept_streams.encoding import encoder_settings as encoder_settings
from diffusion_lens.concept_streams.streams import ConceptStreams as ConceptStreams
from diffusion_lens.concept_streams.streams import carriers as carriers

# The pipeline: calls of its methods, seen and unseen; evaluations that start in the middle
from diffusion_lens.engine.modular import call_settings as call_settings
from diffusion_lens.engine.modular import is_modular as is_modular
from diffusion_lens.engine.observing import observed as observed
from diffusion_lens.engine.projection import is_plain as is_plain
from diffusion_lens.engine.prompt_blocks import encoding as encoding
from diffusion_lens.engine.restart import Replay as Replay
from diffusion_lens.engine.restart import TrajectoryReplay as TrajectoryReplay

# Parts of tensors, as Sites select them
from diffusion_lens.engine.selection import Part as Part
from diffusion_lens.engine.selection import as_factors as as_factors
from diffusion_lens.engine.selection import as_tensor as as_tensor
from diffusion_lens.engine.selection import heads_in as heads_in
from diffusion_lens.engine.selection import put as put
from diffusion_lens.engine.selection import selects as selects
from diffusion_lens.engine.selection import take as take

# Words of a prompt, and keys of words
from diffusion_lens.engine.text_keys import text_context as text_context
from diffusion_lens.engine.text_keys import text_keys as text_keys
from diffusion_lens.engine.words import WORD as WORD
from diffusion_lens.engine.words import PromptTokens as PromptTokens
from diffusion_lens.engine.words import words_of as words_of

# Runs, and given images
from diffusion_lens.hooked_diffusion.beginning import beginning as beginning
from diffusion_lens.hooked_diffusion.caching import quiet as quiet
from diffusion_lens.hooked_diffusion.given_image import fitted as fitted
from diffusion_lens.hooked_diffusion.given_image import fitted_size as fitted_size
from diffusion_lens.hooked_diffusion.given_image import size_of as size_of
from diffusion_lens.hooked_diffusion.output import versions as versions
from diffusion_lens.hooked_diffusion.run import DEFAULT_SEED as DEFAULT_SEED
