"""Drawings of notebook 16: heads are dealt as the model needs them, and a ring is drawn as it was run."""

import re

import pytest
from helpers import assert_words_stay_apart

from llama3_scratch import diagrams
from llama3_scratch.params import PUBLISHED, ModelArgs

LLAMA_8B = PUBLISHED["Llama 3 8B"]
AWKWARD = ModelArgs(48, n_layers=2, n_heads=12, n_kv_heads=3, vocab_size=300, multiple_of=48)
MODELS = {"8B": LLAMA_8B, "70B": PUBLISHED["Llama 3 70B"], "12 over 3": AWKWARD}
DEALS = [
    (name, n)
    for name, args in MODELS.items()
    for n in range(1, 17)
    if args.n_heads % n == 0 and args.n_heads // n <= 32
]


def words(picture, ax=0):
    return [text.get_text() for text in picture.axes[ax].texts]


def drawn_at(picture, y):
    """The numbers in a row of boxes, with the left and right edges of their boxes."""
    [ax] = picture.axes
    boxes = [p for p in ax.patches if p.get_y() == y and p.get_facecolor()[3] > 0]
    found = []
    for box in boxes:
        left, right = box.get_x(), box.get_x() + box.get_width()
        inside = [
            t.get_text() for t in ax.texts if left < t.get_position()[0] < right and y < t.get_position()[1] < y + 0.32
        ]
        assert len(inside) == 1, inside
        found.append((int(inside[0]), left, right))
    return found


@pytest.mark.parametrize(("name", "processes"), DEALS)
def test_each_query_head_stands_over_the_kv_head_that_it_reads(name, processes):
    args = MODELS[name]
    picture = diagrams.heads_dealt(args, processes)
    queries, kept = drawn_at(picture, 0.2), drawn_at(picture, 0.7)
    assert [h for h, _, _ in queries] == list(range(len(queries)))
    for head, left, right in queries:
        over = [kv for kv, start, end in kept if start - 1e-6 <= left and right <= end + 1e-6]
        assert over == [head // args.group_size]
    assert_words_stay_apart(picture)


def test_a_kv_head_that_is_kept_twice_is_said_and_framed():
    picture = diagrams.heads_dealt(AWKWARD, 2)
    assert [kv for kv, _, _ in drawn_at(picture, 0.7)] == [0, 0, 1, 1, 2, 2]
    assert "KV heads kept more than once: 0, 1, 2" in picture.alt
    assert sum(p.get_linewidth() == 2.2 for p in picture.axes[0].patches) == 6
    once = diagrams.heads_dealt(LLAMA_8B, 8)
    assert "No KV head is kept twice" in once.alt
    assert not any(p.get_linewidth() == 2.2 for p in once.axes[0].patches)


def test_kv_heads_of_one_colour_differ_in_their_hatches():
    kept = [p for p in diagrams.heads_dealt(LLAMA_8B, 8).axes[0].patches if p.get_y() == 0.7]
    looks = {(p.get_facecolor(), p.get_hatch()) for p in kept}
    assert len(kept) == len(looks) == 8


def test_of_many_heads_the_first_processes_are_drawn():
    picture = diagrams.heads_dealt(PUBLISHED["Llama 3.1 405B"], 16)
    assert "16 processes (the first 4 are drawn): 8 of 128 query heads each, and 1 KV head" in picture.alt
    assert [kv for kv, _, _ in drawn_at(picture, 0.7)] == [0, 0, 1, 1]


def test_heads_that_do_not_divide_are_not_drawn():
    with pytest.raises(ValueError, match="12 heads cannot be dealt evenly to 5 processes"):
        diagrams.heads_dealt(AWKWARD, 5)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_a_layer_has_a_row_for_each_process_and_two_sums(processes):
    picture = diagrams.layer_in_processes(AWKWARD, processes, 7)
    drawn = words(picture)
    assert [word for word in drawn if word.startswith("process ")] == [f"process {r}" for r in range(processes)]
    assert drawn.count("sum over all") == 2 and drawn.count("[7, 48]") == 2
    assert drawn.count(f"attention\n{12 // processes} heads") == processes
    around = [line for line in picture.axes[0].lines if len(line.get_xdata()) == 3]  # from x to its plus
    assert len(around) == 2 * processes and drawn.count("+") == 2 * processes
    assert_words_stay_apart(picture)


def ring(n):
    """What everyone holds after each step of a sum in a ring."""
    held = [[(chunk + 1) * 10**rank for chunk in range(n)] for rank in range(n)]
    states = [[list(row) for row in held]]
    for step in range(2 * (n - 1)):
        sent = [((rank + 1) % n, (rank - step) % n, held[rank][(rank - step) % n]) for rank in range(n)]
        for to, chunk, number in sent:
            held[to][chunk] = held[to][chunk] + number if step < n - 1 else number
        states.append([list(row) for row in held])
    return states


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_ring_is_drawn_step_by_step(n):
    picture = diagrams.ring_sum(ring(n))
    drawn = words(picture)
    steps = [f"step {s}: {'add' if s < n else 'pass on'}" for s in range(1, 2 * n - 1)]
    assert [word for word in drawn if re.match("at|step", word)] == ["at the start", *steps]
    frames = [p for p in picture.axes[0].patches if p.get_linewidth() == 1.8]
    assert len(frames) == n * 2 * (n - 1)  # in every step each rank gets one chunk
    grown = [0] * (n - 1) + [n * i for i in range(1, n + 1)]
    assert picture.alt.endswith(f"from the start on: {', '.join(map(str, grown))}.")
    assert_words_stay_apart(picture)


def test_another_number_in_a_ring_shows():
    states = ring(3)
    before = repr(diagrams.ring_sum(states))
    states[2][1][0] += 1
    assert repr(diagrams.ring_sum(states)) != before


def test_bars_of_a_token_are_as_long_as_its_parts():
    times = {
        "one case": {"reading": 5.0, "waiting": 2.0, "sending": 1.0},
        "slow": {"reading": 5.0, "waiting": 90.0, "sending": 5.0},
    }
    picture = diagrams.token_times(times, "70B")
    [ax] = picture.axes
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches if bar.get_width() < 96 and bar.get_height() > 0.6]
    assert bars == [(0, 5), (5, 2), (7, 1), (0, 5), (5, 90), (95, 5)]
    assert words(picture) == ["8 ms, 125 tokens a second", "100 ms, 10 tokens a second"]
    assert "slow 5 ms reading, 90 ms waiting, 5 ms sending" in picture.alt
    assert_words_stay_apart(picture)
