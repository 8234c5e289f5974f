"""Drawings of the machine, made from the sizes of the loaded model. One visual language for all of them:

a vector is a strip, a matrix a rectangle with its shape written below, a head a colour. What flows is blue, what was
learned is yellow, an operation is a white pill, and the step that a notebook is about is lit. Like the pictures of
`plots`, each is a Picture, carries what it shows in numbers and words, and has a text for those who cannot see it.
"""

from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims
from .layer import HEAD_STEPS, bypasses, grouped_heads, heads_to_stream, one_head, swiglu
from .overview import STEPS, last_vector, model_map, parameter_bars, tower
from .tokens import cut_by_rule, text_to_rows, tokenizer_steps
from .vectors import along, clock_hands, norm_step, one_turn, sphere

__all__ = [
    "FLOWS",
    "GREY",
    "HATCHES",
    "HEAD_STEPS",
    "INK",
    "LEARNED",
    "LIT",
    "PAPER",
    "STEPS",
    "Board",
    "along",
    "bypasses",
    "clock_hands",
    "cut_by_rule",
    "dims",
    "grouped_heads",
    "heads_to_stream",
    "last_vector",
    "model_map",
    "norm_step",
    "one_head",
    "one_turn",
    "parameter_bars",
    "sphere",
    "swiglu",
    "text_to_rows",
    "tokenizer_steps",
    "tower",
]
