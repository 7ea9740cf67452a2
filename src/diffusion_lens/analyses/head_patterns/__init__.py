"""What every head attends to, and patterns between tokens."""

from diffusion_lens.analyses.head_patterns.head_patterns import head_patterns as head_patterns
from diffusion_lens.analyses.head_patterns.result import HeadPatterns as HeadPatterns
from diffusion_lens.analyses.head_patterns.statistics import PatternStatistics as PatternStatistics
from diffusion_lens.analyses.head_patterns.statistics import pattern_distance as pattern_distance
from diffusion_lens.analyses.head_patterns.statistics import pattern_entropy as pattern_entropy
from diffusion_lens.analyses.head_patterns.token_view import token_view as token_view
