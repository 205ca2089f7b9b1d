"""The group holdout loss in the loop: its settings, and end to end with reducr."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import reducible as rd
from group_holdout_toys import G, rows_of


def test_settings_of_the_loop() -> None:
    reducr = rd.selector("reducr")
    loader = rows_of().loader(10)
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(30, G))
    model = nn.Linear(4, G)

    def make(**options: Any) -> Any:
        return rd.SelectingLoader(loader, model, reducr, **({"keep": 2, "store": store} | options))

    with pytest.raises(rd.ConfigurationError, match="needs group_holdout=<holdout loader>"):
        make()
    flat = rd.IrreducibleLossStore.from_tensor(torch.zeros(30))
    with pytest.raises(rd.ConfigurationError, match="goes with a store that has a column per"):
        make(store=flat, group_holdout=loader)
    with pytest.raises(rd.ConfigurationError, match="refresh must be a whole number"):
        make(group_holdout=loader, refresh=0)
    with pytest.raises(rd.ConfigurationError, match=r"groups has 5 entries, but there is an id"):
        make(group_holdout=loader, groups=torch.zeros(5).long())
    with pytest.raises(rd.ConfigurationError, match="decay must be a number in"):
        make(group_holdout=loader, refresh=1, refresh_decay=1.0)
    slow, quick = (make(group_holdout=loader, refresh=1, refresh_decay=a) for a in (0.99, 0.0))
    for batches in (slow, quick):
        _ = [batch.ids for batch in batches]
    held = [b.state_dict()["measuring"]["holdout"] for b in (slow, quick)]
    assert float(torch.as_tensor(held[0]["mass"]).max()) < 0.1  # three batches at a = 0.99
    assert float(torch.as_tensor(held[1]["mass"]).max()) == 1.0
    by_id = make(groups=torch.zeros(30).long(), group_holdout=[_four_wide()])
    with pytest.raises(rd.DataError, match="groups go by id, so the group holdout must yield"):
        next(iter(by_id))


def _four_wide() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4), torch.tensor([0, 1, 2])


# -- end to end -----------------------------------------------------------------------------------


N, N_B, K, ETA = 60, 20, 4, 0.5


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched(nn.Module):
    """Remembers which examples it saw, by the number in their first column; costs time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.head = nn.Linear(4, G)
        self.clock = clock
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x[:, 0].long().tolist()))
        self.clock.now += 1
        return self.head(x[:, 1:])


@pytest.mark.parametrize("refresh", ["epoch", 2])
def test_reducr_through_the_loop_against_a_literal_one(refresh: Any) -> None:
    """Algorithm 1: H from the holdout, w = softmax(−η·S), top-k Σ_c w_c·e_ic, S += Σ (e − H)."""
    n = N + 20 + 10  # train set, holdout, test set
    g = torch.Generator().manual_seed(8)
    x = torch.cat([torch.arange(n)[:, None], torch.randn(n, 4, generator=g)], dim=1)
    y = torch.randint(G, (n,), generator=g)
    everything = rd.WithIds(list(zip(x, y, strict=True)))
    train, holdout = Subset(everything, range(N)), Subset(everything, range(N, N + 20))
    irreducible = torch.rand(n, G, generator=g)
    store = rd.IrreducibleLossStore.from_tensor(irreducible)
    clock = Clock()
    model = Watched(clock)
    ledger = rd.Ledger(clock=clock)
    train_loader = DataLoader(
        train, batch_size=N_B, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    batches = rd.SelectingLoader(
        train_loader,
        model,
        rd.selector("reducr", eta=ETA),
        keep=K,
        store=store,
        group_holdout=DataLoader(holdout, batch_size=10),
        refresh=refresh,
        ledger=ledger,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    total = torch.zeros(G, dtype=torch.float64)
    average, count, drawn = torch.zeros(G).double(), torch.zeros(G).double(), 0
    h, passes = torch.empty(0), 0
    for _ in range(2):
        for chosen in batches:
            step = batches.step - 1
            looked, model.seen = model.seen, []
            candidates = torch.tensor(looked[-1])  # the holdout first, then the candidates
            assert set(candidates.tolist()) <= set(range(N))
            with torch.no_grad():
                losses = F.cross_entropy(model.head(x[:, 1:]), y, reduction="none").double()
            if refresh == "epoch":
                rows = list(range(N, N + 20)) if step % 3 == 0 else []
                if rows:
                    h = torch.stack(
                        [losses[N : N + 20][y[N : N + 20] == c].mean() for c in (0, 1, 2)]
                    )
            else:
                first = N + 10 * (drawn % 2)
                rows = list(range(first, first + 10)) if step % 2 == 0 else []
                drawn += bool(rows)
                for c in set(y[rows].tolist()):
                    mean = losses[rows][y[rows] == c].mean()
                    average[c] = 0.9 * average[c] + 0.1 * mean
                    count[c] += 1
                h = average / (1 - 0.9**count)
            assert [i for row in looked[:-1] for i in row] == rows
            passes += len(looked)

            excess = (losses[candidates, None] - irreducible[candidates]).clamp(min=0)
            weights = torch.softmax(-ETA * total, 0)
            score = excess @ weights
            best = score.argsort(descending=True)[:K]
            assert chosen.ids.tolist() == candidates[best].tolist()
            assert chosen.info["group_weights"].tolist() == pytest.approx(
                weights.tolist(), abs=1e-5
            )
            total += (excess[best] - h).sum(0)

            bx, by = chosen.batch
            optimizer.zero_grad()
            with ledger.phase("evaluate"):
                loss = F.cross_entropy(model.head(bx[:, 1:]), by, reduction="none")
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
    assert passes == 6 + (4 if refresh == "epoch" else 3)
    assert ledger.seconds["score"] == passes  # the refresh is charged to scoring
    assert ledger.total == passes
