"""Choices handed out in parts, and what there is to log of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import reducible as rd
from reducible.loop.chosen import Part, Parts


def _part(**changes: Any) -> Part:
    rows = torch.arange(6)
    whole: dict[str, Any] = {
        "positions": rows, "ids": rows + 10, "weights": torch.ones(6), "info": {}, "shadows": {},
    }  # fmt: skip
    return Part(**(whole | changes))


@pytest.mark.parametrize(
    ("info", "shadows", "more"),
    [
        ({}, {}, False),
        ({"score": torch.ones(6)}, {}, False),
        ({"quota": torch.ones(2)}, {}, True),
        ({"score": torch.ones(6), "quota": torch.ones(2)}, {}, True),
        ({}, {"watch": torch.arange(6)}, True),
    ],
)
def test_what_there_is_to_log_beside_ids_scores_and_weights(
    info: dict[str, Any], shadows: dict[str, Any], more: bool
) -> None:
    assert _part(info=info, shadows=shadows).says_more is more


def test_parts_are_counted_as_they_are_handed_out() -> None:
    parts = Parts(_part().split(2))
    assert (bool(parts), parts.handed_out) == (True, 0)
    assert parts.take().ids.tolist() == [10, 11]
    assert parts.handed_out == 1
    assert parts.take().ids.tolist() == [12, 13]
    assert (bool(parts), parts.handed_out) == (True, 2)
    parts.take()
    assert not parts
    assert not Parts()
    assert Parts().handed_out == 0


def test_parts_go_on_from_a_state() -> None:
    parts = Parts(_part(drawn_at=3).split(2))
    parts.take()
    again = Parts.from_state(parts.state_dict(), 3)
    assert again.handed_out == 1
    part = again.take()
    assert (part.ids.tolist(), part.drawn_at) == ([12, 13], 3)
    assert Parts.from_state([], 3).handed_out == 0
    assert not Parts.from_state([], 3)


def test_a_choice_without_shadows_has_none() -> None:
    chosen = rd.Chosen(torch.zeros(1), torch.arange(1), torch.ones(1), {})
    assert chosen.shadows == {}
