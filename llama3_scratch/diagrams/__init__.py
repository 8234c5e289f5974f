"""Drawings of the machine, made from the sizes of the loaded model. One visual language for all of them:

a vector is a strip, a matrix a rectangle with its shape written below, a head a colour. What flows is blue, what was
learned is yellow, an operation is a white pill, and the step that a notebook is about is lit. Like the pictures of
`plots`, each is a Picture, carries what it shows in numbers and words, and has a text for those who cannot see it.
"""

from .ablation import PARTS, left_out, one_to_the_right
from .attribution import forgetful_cache, logit_parts, patched_runs
from .board import FLOWS, GREY, HATCHES, INK, LEARNED, LIT, PAPER, Board, dims
from .circuits import KINDS, habit_places, head_kinds, induction_circuit, trace_names
from .editing import below_once
from .family import clock_faces, family_table, will_it_fit
from .files import cut_ends, cut_layer, float_bits, pth_contents, rope_orders, safetensors_contents
from .generation import cache_filling, chat_tokens, dart_board, new_rows, new_token, turns, work
from .layer import HEAD_STEPS, bypasses, grouped_heads, heads_to_stream, one_head, swiglu
from .lenses import early_reading, push_through
from .lora import lesson, low_rank
from .modules import MODULES, gradient_ways, nested_modules, padded_batch, tied_ends
from .overview import STEPS, last_vector, model_map, parameter_bars, tower
from .parallel import heads_dealt, layer_in_processes, ring_sum, token_times
from .quantized import block_of_nibbles, levels, lost_by_bits, rounded_row
from .roofline import memory_bars, roofline, will_it_run
from .scaling import modular_clocks, spectra, three_products, training_costs
from .schedule import cache_pages, crossing, fleet, schedule, stages
from .tokens import cut_by_rule, text_to_rows, tokenizer_steps
from .training import lessons, training_memory, training_step, windows
from .vectors import along, clock_hands, norm_step, one_turn, sphere

__all__ = [
    "FLOWS",
    "GREY",
    "HATCHES",
    "HEAD_STEPS",
    "INK",
    "KINDS",
    "LEARNED",
    "LIT",
    "MODULES",
    "PAPER",
    "PARTS",
    "STEPS",
    "Board",
    "along",
    "below_once",
    "block_of_nibbles",
    "bypasses",
    "cache_filling",
    "cache_pages",
    "chat_tokens",
    "clock_faces",
    "clock_hands",
    "crossing",
    "cut_by_rule",
    "cut_ends",
    "cut_layer",
    "dart_board",
    "dims",
    "early_reading",
    "family_table",
    "fleet",
    "float_bits",
    "forgetful_cache",
    "gradient_ways",
    "grouped_heads",
    "habit_places",
    "head_kinds",
    "heads_dealt",
    "heads_to_stream",
    "induction_circuit",
    "last_vector",
    "layer_in_processes",
    "left_out",
    "lesson",
    "lessons",
    "levels",
    "logit_parts",
    "lost_by_bits",
    "low_rank",
    "memory_bars",
    "model_map",
    "modular_clocks",
    "nested_modules",
    "new_rows",
    "new_token",
    "norm_step",
    "one_head",
    "one_to_the_right",
    "one_turn",
    "padded_batch",
    "parameter_bars",
    "patched_runs",
    "pth_contents",
    "push_through",
    "ring_sum",
    "roofline",
    "rope_orders",
    "rounded_row",
    "safetensors_contents",
    "schedule",
    "spectra",
    "sphere",
    "stages",
    "swiglu",
    "text_to_rows",
    "three_products",
    "tied_ends",
    "token_times",
    "tokenizer_steps",
    "tower",
    "trace_names",
    "training_costs",
    "training_memory",
    "training_step",
    "turns",
    "will_it_fit",
    "will_it_run",
    "windows",
    "work",
]
