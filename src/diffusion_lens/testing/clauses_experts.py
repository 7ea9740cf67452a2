"""Clause 8, of mixtures of experts: logits make the choice, weights weigh what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lens.architectures.spec import Router
from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.comparing import close
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject


def experts_are_chosen(subject: Subject, findings: Findings) -> None:
    """What was chosen has the highest scores, and each token's output is weighed by its weights."""
    for block in subject.blocks:
        for stream, mlp in block.spec.mlps.items():
            base = f"{block.prefix}.{stream}"
            logits = f"{base}.mlp.hook_router_logits"
            if mlp.router is None or logits not in subject.sample:
                continue
            choice = _choice(mlp.router, base)
            weights = f"{base}.mlp.hook_expert_weights"
            names = [logits, choice, *([weights] if weights in subject.points else [])]
            found = subject.record(names).values()
            if weights in found:
                _weights_are_scores(subject, findings, mlp.router, weights, [*found.values()])
            _has_highest_scores(findings, mlp.router, choice, found[logits], found[choice])
            if subject.points[logits].dead:
                continue
            _edits_choose(subject, findings, mlp.router, logits, choice)
            if mlp.router.weights is not None:
                _weights_weigh(subject, findings, base)


def _choice(router: Router, base: str) -> str:
    name = "hook_expert_tokens" if router.chooser == "expert" else "hook_experts"
    return f"{base}.mlp.{name}"


def scores_of(router: Router, logits: Tensor) -> Tensor:
    """What the choice goes by, the axis along which it is made last, rounded as the model does."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    wide = logits.to(precise)
    scores = wide.sigmoid() if router.scores == "sigmoid" else wide.softmax(-1)
    scores = scores.to(logits.dtype).to(precise)
    return scores.transpose(1, 2) if router.chooser == "expert" else scores


def _has_highest_scores(
    findings: Findings, router: Router, where: str, logits: Tensor, choice: Tensor
) -> None:
    scores = scores_of(router, logits)
    taken = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, choice, True)
    lowest = scores.gather(-1, choice).amin(-1)
    others = scores.masked_fill(taken, 0.0).amax(-1)
    distinct = int(taken.sum()) == choice.numel()
    findings.check(
        distinct and bool((lowest >= others).all()),
        8,
        where,
        expected=f"the {choice.shape[-1]} of the highest scores, each once",
        found="others" if distinct else "one of them twice",
    )


def _weights_are_scores(
    subject: Subject, findings: Findings, router: Router, where: str, values: Sequence[Tensor]
) -> None:
    """Up to a factor for each token, column by column."""
    logits, choice, weights = values
    chosen = scores_of(router, logits).gather(-1, choice)
    found, expected_shares = (
        one / one.sum(-1, keepdim=True) for one in (weights.to(chosen.dtype), chosen)
    )
    compared = close(found, expected_shares, subject.tolerance.sum, largest_term=1.0)
    expected = "the scores of the experts that were chosen, in their order"
    findings.check(**vars(compared), clause=8, where=where, expected=expected)


def _edits_choose(
    subject: Subject, findings: Findings, router: Router, logits: str, choice: str
) -> None:
    """Logits turned round in the order of experts, or of tokens, turn the choice round."""
    axis = 1 if router.chooser == "expert" else 2

    def turned(activation: Tensor, _hook: HookContext) -> Tensor:
        return activation.flip(axis)

    found = subject.record([logits, choice], [(logits, turned)]).values()
    _has_highest_scores(findings, router, choice, found[logits], found[choice])


def _weights_weigh(subject: Subject, findings: Findings, base: str) -> None:
    """The raw output is that without experts, plus each expert's share by its weight."""
    weights, raw = f"{base}.mlp.hook_expert_weights", f"{base}.hook_mlp_out"
    chosen = subject.record([weights]).values()[weights].shape[-1]

    def output(kept: list[int]) -> Tensor:
        def keep(activation: Tensor, _hook: HookContext) -> Tensor:
            factors = torch.zeros_like(activation)
            factors[1:, :, kept] = activation[1:, :, kept]
            factors[:, 1:, kept] = activation[:, 1:, kept]
            return factors

        return subject.record([raw], [(weights, keep)]).values()[raw]

    everything, nothing = output(list(range(chosen))), output([])
    plain = subject.record([raw]).values()[raw]
    summed = nothing + sum(output([one]) - nothing for one in range(chosen))
    largest = float(torch.maximum(everything.abs().max(), nothing.abs().max()))
    compared = close(everything, summed, subject.tolerance.sum, largest_term=largest)
    expected = "the outputs of the experts one by one to add up to that of all"
    findings.check(**vars(compared), clause=8, where=weights, expected=expected)
    apart = (everything != plain).any(-1)
    inside = torch.zeros_like(apart)
    inside[0, 0] = True
    findings.check(
        torch.equal(apart, inside),
        8,
        weights,
        expected="the weights of one token to change its output and no other",
        found=f"{int(apart.sum())} tokens moved",
    )
