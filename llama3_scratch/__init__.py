"""Llama 3 from scratch: the small package behind the notebooks."""

from . import circuits, functional, lenses, lora, training
from .batching import generate_batch
from .cache import KVCache
from .chat import encode_chat
from .generation import generate, generate_text
from .loading import fetch
from .loading.checkpoint import Checkpoint, load_checkpoint
from .messages import CheckpointError
from .model import Llama
from .params import ModelArgs
from .prompt import read_prompt
from .tokenizer import Tokenizer
from .tracing import Trace, trace

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "KVCache",
    "Llama",
    "ModelArgs",
    "Tokenizer",
    "Trace",
    "circuits",
    "encode_chat",
    "fetch",
    "functional",
    "generate",
    "generate_batch",
    "generate_text",
    "lenses",
    "load_checkpoint",
    "lora",
    "read_prompt",
    "trace",
    "training",
]
