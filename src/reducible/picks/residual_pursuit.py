"""DivBS: rows whose gradients together explain the batch's mean gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducible.picks._checks import check_k
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

    All products come from ⟨G_i, G_j⟩ = ⟨h_i, h_j⟩·⟨f_i, f_j⟩, one column per pick, as in a pivoted
    Cholesky factorisation: O(k·B·(C + D + k)) time, O(B·k) memory, in float64.

    Args:
        h: [B, C] float64 gradients with respect to the logits.
        f: [B, D] float64 inputs of the last layer.
        k: how many, 1 ≤ k ≤ B.
        rule: how the next row is picked.
        generator: on the tensors' device.

    Returns:
        Selection of k different rows in the order picked, ``info["score"]`` [K] the |⟨G_i, r⟩| at
        which each was picked.
    """
    size = h.shape[0]
    check_k(k, size)
    order = torch.randperm(size, generator=generator, device=h.device)  # ties at random
    h, f = h[order], f[order]
    towards = ((h @ (h.T @ f / size)) * f).sum(dim=1)  # [B] ⟨G_i, r⟩
    norm = h.square().sum(dim=1) * f.square().sum(dim=1)  # [B] ‖G_i‖²
    start = float(towards.mean())  # ‖r‖²
    left = start
    basis = h.new_zeros(k, size)  # [K, B] ⟨G_i, e_t⟩
    picked = torch.zeros(size, dtype=torch.bool, device=h.device)
    chosen = torch.empty(k, dtype=torch.int64, device=h.device)
    pull = h.new_zeros(k)  # [K] |⟨G_i, r⟩| when picked
    done = 0
    while done < k and left > _SMALL**2 * start:
        size_of = towards.abs().masked_fill(picked, -1.0 if rule == "greedy" else 0.0)
        if rule == "sample":
            if not bool(size_of.any()):
                break
            new = int(torch.multinomial(size_of, 1, generator=generator))
        else:
            new = int(size_of.argmax())
        chosen[done], pull[done] = new, size_of[new]
        picked[new] = True
        seen = basis[:done, new]  # [t]
        across = norm[new] - seen.square().sum()  # ‖G_new‖² across the picked ones
        if float(across) > _SMALL**2 * float(norm[new]):
            column = (h @ h[new]) * (f @ f[new])  # [B] ⟨G_i, G_new⟩
            length = across.sqrt()
            along = (column - seen @ basis[:done]) / length  # [B] ⟨G_i, e⟩
            share = towards[new] / length  # ⟨e, r⟩: G_new's part along the picked ones meets r in 0
            towards = towards - share * along
            basis[done] = along
            left -= float(share) ** 2
        done += 1
    rest = (~picked).nonzero().squeeze(1)[: k - done]  # the rows are in random order already
    chosen[done:] = rest
    return Selection(index=order[chosen], weight=h.new_ones(k), info={"score": pull})
