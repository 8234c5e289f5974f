"""Llama 3 from scratch: the small package behind the notebooks."""

from . import functional
from .checkpoint import Checkpoint, load_checkpoint
from .params import CheckpointError, ModelArgs
from .tokenizer import Tokenizer

__all__ = ["Checkpoint", "CheckpointError", "ModelArgs", "Tokenizer", "functional", "load_checkpoint"]
