"""DivBS: rows whose gradients together explain the batch's mean gradient.

All products come from ⟨G_i, G_j⟩ = ⟨h_i, h_j⟩·⟨f_i, f_j⟩, one column per pick, as in a pivoted
Cholesky factorisation: O(k·B·(C + D + k)) time, O(B·k) memory, in float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducible.picks._checks import check_k
from reducible.picks._draws import exponential, shuffled
from reducible.types import Selection

_SMALL = 1e-6  # relative norm under which a direction, or the residual, counts as nothing


def residual_pursuit(
    h: Tensor,
    f: Tensor,
    k: int,
    *,
    rule: Literal["greedy", "sample"] = "greedy",
    generator: torch.Generator,
) -> Selection:
    """Orthogonal pursuit of the mean of G_i = h_i ⊗ f_i, without ever building a G_i.

    r = mean_i G_i. k times: pick an unpicked i, with the largest |⟨G_i, r⟩| (``"greedy"``) or
    with probability ∝ it (``"sample"``); orthonormalise G_i against the picked ones to e; then
    r ← r − ⟨e, r⟩·e. A G_i that adds no direction is picked and leaves r as it is. Once ‖r‖ is
    10⁻⁶ of its start the rest is drawn at random (DivBS, Hong et al. 2024).

    Args:
        h: [B, C] float64 gradients with respect to the logits.
        f: [B, D] float64 inputs of the last layer.
        k: how many, 1 ≤ k ≤ B.
        rule: how the next row is picked.
        generator: on any device.

    Returns:
        k different rows in the order picked; ``info["score"]``: [K] |⟨G_i, r⟩| at each pick.
    """
    size = h.shape[0]
    check_k(k, size)
    order = shuffled(size, generator=generator, like=h)  # ties at random
    h, f = h[order], f[order]
    towards = ((h @ (h.T @ f / size)) * f).sum(dim=1)  # [B] ⟨G_i, r⟩
    norm = h.square().sum(dim=1) * f.square().sum(dim=1)  # [B] ‖G_i‖²
    start = left = towards.mean()  # [] ‖r‖²
    basis = h.new_zeros(k, size)  # [K, B] ⟨G_i, e_t⟩
    free = h.new_zeros(size)  # [B] 0, or −∞ once picked
    in_turn = -torch.arange(1.0, size + 1.0, dtype=h.dtype, device=h.device)  # [B] for the rest
    chosen = torch.empty(k, dtype=torch.int64, device=h.device)
    pull = h.new_zeros(k)  # [K] |⟨G_i, r⟩| when picked
    # Every number stays a tensor, because an accelerator would be waited for at every pick.
    for done in range(k):
        size_of = race = towards.abs()
        pulls = left > _SMALL**2 * start  # []
        if rule == "sample":  # the largest p_i/E_i is a draw with p_i
            pulls = pulls & (size_of + free > 0).any()
            race = size_of / exponential(size, generator=generator, like=h)
        new = (torch.where(pulls, race, in_turn) + free).argmax(dim=0, keepdim=True)  # [1]
        chosen[done] = new[0]
        pull[done] = torch.where(pulls, size_of[new], 0.0)[0]
        free.index_fill_(0, new, float("-inf"))
        seen = basis[:done].index_select(1, new)  # [t, 1]
        across = norm[new] - seen.square().sum()  # [1] ‖G_new‖² across the picked ones
        grows = pulls & (across > _SMALL**2 * norm[new])  # [1]
        column = h.mv(h.index_select(0, new)[0]) * f.mv(f.index_select(0, new)[0])  # [B]
        length = across.clamp(min=torch.finfo(h.dtype).tiny).sqrt()
        along = (column - seen[:, 0] @ basis[:done]) / length * grows  # [B] ⟨G_i, e⟩
        share = towards[new] / length * grows  # [1] ⟨e, r⟩, for the picked ones meet r in 0
        towards = towards - share * along
        basis[done] = along
        left = left - share.square()[0]
    return Selection(index=order[chosen], weight=h.new_ones(k), info={"score": pull})
