"""Drawings of the machine, made from the sizes of the loaded model. One visual language for all of them:

a vector is a strip, a matrix a rectangle with its shape written below, a head a colour. What flows is blue, what was
learned is yellow, an operation is a white pill, and the step that a notebook is about is lit. Like the pictures of
`plots`, each is a Picture, carries what it shows in numbers and words, and has a text for those who cannot see it.
"""

from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims
from .family import clock_faces, family_table, will_it_fit
from .files import cut_ends, cut_layer, float_bits, pth_contents, rope_orders, safetensors_contents
from .generation import cache_filling, chat_tokens, dart_board, new_rows, new_token, turns, work
from .layer import HEAD_STEPS, bypasses, grouped_heads, heads_to_stream, one_head, swiglu
from .modules import MODULES, gradient_ways, nested_modules, padded_batch, tied_ends
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
    "MODULES",
    "PAPER",
    "STEPS",
    "Board",
    "along",
    "bypasses",
    "cache_filling",
    "chat_tokens",
    "clock_faces",
    "clock_hands",
    "cut_by_rule",
    "cut_ends",
    "cut_layer",
    "dart_board",
    "dims",
    "family_table",
    "float_bits",
    "gradient_ways",
    "grouped_heads",
    "heads_to_stream",
    "last_vector",
    "model_map",
    "nested_modules",
    "new_rows",
    "new_token",
    "norm_step",
    "one_head",
    "one_turn",
    "padded_batch",
    "parameter_bars",
    "pth_contents",
    "rope_orders",
    "safetensors_contents",
    "sphere",
    "swiglu",
    "text_to_rows",
    "tied_ends",
    "tokenizer_steps",
    "tower",
    "turns",
    "will_it_fit",
    "work",
]
