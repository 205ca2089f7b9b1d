"""What only a CUDA device shows: its random stream, pinned loaders, compiled models, its graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no CUDA device here; `make gpu` runs these on a machine that has one",
    ),
]

N, N_B, N_CANDIDATES = 240, 6, 40
CUDA = torch.device("cuda", 0)


def points() -> TensorDataset:
    g = torch.Generator().manual_seed(5)
    y = torch.randint(4, (N,), generator=g)
    return TensorDataset(F.one_hot(y, 6).float() * 2 + torch.randn(N, 6, generator=g), y)


def loader(**options: Any) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(8)
    return DataLoader(
        rd.WithIds(points()), N_CANDIDATES, shuffle=True, generator=order, drop_last=True, **options
    )


def network(*more: nn.Module) -> nn.Module:
    with torch.random.fork_rng([0]):
        torch.manual_seed(7)
        layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), *more, nn.Linear(16, 4)
        return nn.Sequential(*layers).to(CUDA)


def selecting(model: nn.Module, rule: str = "train_loss", **options: Any) -> rd.SelectingLoader:
    source = options.pop("loader", None) or loader()
    return rd.SelectingLoader(source, model, rd.selector(rule), keep=N_B, seed=9, **options)


def chosen_ids(batches: rd.SelectingLoader) -> list[list[int]]:
    return [chosen.ids.tolist() for chosen in batches]


@pytest.mark.parametrize("rule", ["train_loss", "bald"])
def test_scoring_leaves_the_stream_of_the_device(rule: str) -> None:
    model = network(nn.Dropout(0.5))
    before = torch.cuda.get_rng_state(CUDA)
    assert len(chosen_ids(selecting(model, rule))) == N // N_CANDIDATES
    assert torch.equal(torch.cuda.get_rng_state(CUDA), before)


def test_pinned_batches_are_the_same() -> None:
    plain = chosen_ids(selecting(network()))
    assert chosen_ids(selecting(network(), loader=loader(pin_memory=True))) == plain


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_chooses_nearly_the_same(precision: Any) -> None:
    plain = chosen_ids(selecting(network()))
    low = chosen_ids(selecting(network(), scoring=rd.Scoring(precision=precision)))
    shared = [len(set(a) & set(b)) / N_B for a, b in zip(plain, low, strict=True)]
    assert sum(shared) / len(shared) > 0.7


def test_a_compiled_pass_chooses_nearly_the_same() -> None:
    plain = chosen_ids(selecting(network()))
    compiled = chosen_ids(selecting(network(), scoring=rd.Scoring(compile=True)))
    shared = [len(set(a) & set(b)) / N_B for a, b in zip(plain, compiled, strict=True)]
    assert sum(shared) / len(shared) > 0.9


def test_images_with_channels_last() -> None:
    g = torch.Generator().manual_seed(3)
    images = TensorDataset(torch.randn(80, 3, 8, 8, generator=g), torch.arange(80) % 4)
    source = DataLoader(rd.WithIds(images), 40)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    model = nn.Sequential(*layers).to(CUDA)
    scoring = rd.Scoring(channels_last=True)
    for chosen in selecting(model, loader=source, scoring=scoring):
        assert chosen.batch[0].device == CUDA
        assert chosen.batch[0].shape == (N_B, 3, 8, 8)


def test_training_by_a_captured_graph_goes_on() -> None:
    """An update captured as a CUDA graph beside scoring: the same weights as by plain calls."""

    def train(captured: bool) -> list[Tensor]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.zeros(N_B, 6, device=CUDA), torch.zeros(N_B, dtype=torch.int64, device=CUDA)

        def update() -> None:
            optimizer.zero_grad(set_to_none=False)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        graph = torch.cuda.CUDAGraph() if captured else None
        for number, chosen in enumerate(selecting(model)):
            x.copy_(chosen.batch[0])
            y.copy_(chosen.batch[1])
            if graph is None or number < 3:
                update()
            elif number == 3:
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    update()
                graph.replay()
            else:
                graph.replay()
        return [w.detach().cpu() for w in model.state_dict().values()]

    torch.testing.assert_close(train(captured=True), train(captured=False), rtol=1e-4, atol=1e-5)


def test_a_store_answers_on_the_device() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.arange(5.0))
    found = store.lookup(torch.tensor([3, 1], device=CUDA))
    assert found.device == CUDA
    assert found.tolist() == [3.0, 1.0]
