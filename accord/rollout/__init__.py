"""Text generation for training: batched cached decoding with one random stream for each sequence."""

from accord.rollout.sampler import Sampler, assemble_rollout, count_tokens
from accord.rollout.streams import draw_tokens, draw_uniforms

__all__ = ["Sampler", "assemble_rollout", "count_tokens", "draw_tokens", "draw_uniforms"]
