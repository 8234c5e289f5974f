"""A head is born in notebook 13: what it says of one training holds for five, from other numbers and on other rows."""

import math

import nbformat
import pytest
import torch
from helpers import NOTEBOOKS

SEEDS = range(1, 6)


@pytest.fixture(scope="module")
def names():
    """What the notebook's cells define for it: `small`, `repeats`, `train` and what they need."""
    path = next(path for path in NOTEBOOKS if path.stem == "13_heads")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    own = [cell.source for cell in cells if "own-model" in cell.metadata.get("tags", [])]
    until = next(i for i, source in enumerate(own) if source.startswith("newborn, born ="))
    found: dict = {}
    imports = [line for cell in cells[:2] for line in cell.source.splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join(imports), found)
    with torch.no_grad():
        for source in own[:until]:
            exec(source, found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_two_layers_grow_an_induction_head_suddenly_and_one_layer_does_not(seed, names, capsys):
    with torch.no_grad():
        _, born = names["train"](2, seed)
        _, one_layer = names["train"](1, seed)
    blind = math.log(names["small"].vocab_size)
    fall = [next(m["step"] for m in born if m["loss"] < part * blind) for part in (0.75, 0.25)]
    assert born[-1]["induction"] > 0.5 and born[-1]["previous"] > 0.5
    assert fall[1] - fall[0] < born[-1]["step"] / 4
    assert min(m["loss"] for m in one_layer) > 0.75 * blind
    assert max(m["induction"] for m in one_layer) < 0.5


def test_the_distance_differs_from_row_to_row_and_what_is_known_has_come_before(names):
    text, known = names["repeats"](names["np"].random.default_rng(3), rows=200)
    distances = set()
    for row, can in zip(text.tolist(), known.tolist(), strict=True):
        distance = can.index(True)  # can[t] is about symbol t + 1
        distances.add(distance)
        assert len(set(row[:distance])) == distance and all(can[distance:])
        assert row[distance:] == row[: len(row) - distance]
    assert distances == set(range(5, 16))
