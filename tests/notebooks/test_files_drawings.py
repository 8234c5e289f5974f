"""Drawings of notebook 12: they say what is in the files and in the model's sizes, and a planted fault shows."""

import io
import json
import struct

import pytest
import torch
from helpers import assert_words_stay_apart
from safetensors.torch import save_file

from llama3_scratch import diagrams
from llama3_scratch.diagrams.files import bits_of, extent
from llama3_scratch.params import PUBLISHED, ModelArgs

MODELS = {**PUBLISHED, "one KV head": ModelArgs(64, 2, 4, 300, 1, 48), "ratio 3": ModelArgs(36, 3, 6, 277, 2, 20)}
every_model = pytest.mark.parametrize("name", MODELS)
T = torch.arange(12.0).view(3, 4)
VIEWS = {"t": T, "again": T, "one row": T[1], "turned": T.T, "columns": T[:, 1:3]}


def words(picture):
    return [text.get_text() for ax in picture.axes for text in ax.texts]


def places(tensors):
    return {name: ("0", t.storage_offset(), tuple(t.shape), t.stride()) for name, t in tensors.items()}


def test_an_extent_is_from_the_first_number_read_to_the_last():
    for name, (_, offset, shape, stride) in places(VIEWS).items():
        read = VIEWS[name].flatten().int()
        assert extent(offset, shape, stride) == (read.min(), read.max() + 1), name


def test_a_pth_says_of_each_name_where_it_points():
    picture = diagrams.pth_contents(places(VIEWS), {"0": 12})
    drawn = words(picture)
    assert "data/0: 12 numbers" in drawn and set(VIEWS) <= set(drawn)
    assert "data/0, from 4, shape [4], steps [1]" in drawn
    assert "data/0, from 0, shape [4, 3], steps [1, 4]" in drawn
    assert "from number 4 on, shape [4]" in picture.alt
    bars = [line for line in picture.axes[0].lines if line.get_linewidth() == 3]
    assert [round((x[1] - x[0]) / 3.2 * 12) for x in (bar.get_xdata() for bar in bars)] == [12, 12, 4, 12, 10]


def test_another_offset_changes_what_a_picture_carries():
    told = places(VIEWS)
    before = repr(diagrams.pth_contents(told, {"0": 12}))
    told["one row"] = ("0", 5, (4,), (1,))
    assert repr(diagrams.pth_contents(told, {"0": 12})) != before


def test_a_safetensors_file_is_drawn_as_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.rand(3, 4), "b.weight": torch.rand(5)}, path, metadata={"format": "pt"})
    file = io.BytesIO(path.read_bytes())
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    picture = diagrams.safetensors_contents(length, header)
    drawn = " | ".join(words(picture))
    assert f"{length:,} bytes of JSON" in drawn and f"byte {8 + length:,} of the file" in drawn
    assert '"a.weight": {"dtype": "F32", "shape": [3, 4],' in drawn and '"data_offsets": [0, 48]}' in drawn
    assert "2 tensors" in picture.alt and "__metadata__" not in drawn


@pytest.mark.parametrize("value", [1.0, -0.15625, 3.1415927, 1e-30, -65504.0])
def test_the_bits_of_a_number_are_its_bits(value):
    assert int(bits_of(value), 2) == struct.unpack("<I", struct.pack("<f", value))[0]
    drawn = words(diagrams.float_bits(value))
    assert "".join(text for text in drawn if text in ("0", "1")) == bits_of(value)
    kept = (torch.tensor(value).view(torch.int32) >> 16 << 16).view(torch.float32).item()
    assert f"with zeros in the lower half: {kept:.9g}" in drawn


@pytest.mark.parametrize("head_dim", [4, 8, 16])
def test_both_orders_have_every_row_and_join_the_same_pairs(head_dim):
    picture = diagrams.rope_orders(head_dim)
    rows = [int(text) for text in words(picture) if text.isdigit()]
    meta, theirs = rows[:head_dim], rows[head_dim:]
    assert meta == [*range(head_dim)] and sorted(theirs) == meta
    half = head_dim // 2
    assert all((theirs[i], theirs[i + half]) == (2 * i, 2 * i + 1) for i in range(half))


@every_model
@pytest.mark.parametrize("machines", [1, 2, 3, 8])
def test_a_cut_layer_has_the_shapes_of_its_matrices(name, machines):
    params = MODELS[name]
    drawn = words(diagrams.cut_layer(params, machines, tokens=17))
    for key, shape in params.weight_shapes().items():
        if key.startswith("layers.0.") and "norm" not in key:
            assert key.split(".")[-2] in drawn and diagrams.dims(shape) in drawn, key
    assert drawn.count("sum") == 2 and drawn.count("cut by rows") == drawn.count("cut by columns") == 2
    assert f"machine {machines - 1}" in drawn and f"machine {machines}" not in drawn


@every_model
@pytest.mark.parametrize("machines", [1, 2, 3, 8])
def test_ends_are_summed_here_and_gathered_there(name, machines):
    params = MODELS[name]
    picture = diagrams.cut_ends(params, machines, tokens=17)
    drawn = " | ".join(words(picture))
    assert "at the beginning: a sum" in drawn and "at the end: a gather" in drawn
    assert f"logits [17, {params.vocab_size:,}]" in drawn and f"vocab / {machines}" in drawn
    assert "side by side" in picture.alt and "their sum" in picture.alt


DRAWINGS = {
    "pth": lambda: diagrams.pth_contents(places(VIEWS), {"0": 12}),
    "bits": lambda: diagrams.float_bits(-0.1),
    "orders": diagrams.rope_orders,
    "layer": lambda: diagrams.cut_layer(PUBLISHED["Llama 3.1 405B"], 8, 512),
    "three": lambda: diagrams.cut_layer(MODELS["ratio 3"], 2, 17),
    "ends": lambda: diagrams.cut_ends(PUBLISHED["Llama 3.1 405B"], 8, 512),
}


@pytest.mark.parametrize("which", DRAWINGS)
def test_words_stay_on_the_board_and_do_not_cover_each_other(which):
    picture = DRAWINGS[which]()
    assert_words_stay_apart(picture)
    assert picture.alt
