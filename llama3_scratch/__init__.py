"""Llama 3 from scratch: the small package behind the notebooks."""

from . import functional
from .chat import encode_chat
from .checkpoint import Checkpoint, load_checkpoint
from .files import CheckpointError
from .generation import generate, generate_text
from .model import KVCache, Llama
from .params import ModelArgs
from .tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "KVCache",
    "Llama",
    "ModelArgs",
    "Tokenizer",
    "encode_chat",
    "functional",
    "generate",
    "generate_text",
    "load_checkpoint",
]
