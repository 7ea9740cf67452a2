"""Which call of a module serves a stream, where one MLP is called once for each."""

from __future__ import annotations

from diffusion_lens.architectures.spec import BlockSpec, Mlp


class Calls:
    """Counts the calls of an MLP; asked once at each."""

    def __init__(self, spec: BlockSpec, mlp: Mlp | None) -> None:
        """Count for one stream's MLP; None for what is called once."""
        self.number = None if mlp is None else mlp.call
        self.in_turn = sum(
            1 for one in spec.mlps.values() if mlp is not None and one.module == mlp.module
        )
        self.seen = 0

    def is_ours(self) -> bool:
        """Whether the call that is running serves the stream."""
        if self.number is None:
            return True
        self.seen += 1
        return (self.seen - 1) % self.in_turn == self.number
