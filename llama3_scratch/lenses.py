"""What a state of the stream says, read as words: the logit lens and the Jacobian lens.

Both end in the model's own last norm and output matrix. The logit lens reads the stream after a layer as if it were the
last one (nostalgebraist 2020). The Jacobian lens first asks what the layers still to come would make of it: if some
other text were pushed a little in the direction of this state, how would its last stream move, there and later, on
average? (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models",
https://transformer-circuits.pub/2026/workspace/)
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import functional
from .checks import check_context, check_layers, check_length, check_tokens
from .loading.checkpoint import Checkpoint
from .messages import progress
from .model import Llama
from .tracing import weights_of

Contexts = Sequence[str] | Sequence[Sequence[int]]

# Texts that have nothing to do with what is read. On SmolLM2 sixty two-hop prompts were read about as well with any one
# of 25 sentences (25 to 32 of them) as with sixteen (29 to 31); these are three, so that no word of one shows through.
CONTEXTS = (
    "My grandmother taught me how to play chess.",
    "Water boils sooner on a mountain.",
    "He paid for the coffee and left.",
)
_ROWS = 1024  # of vectors that are pushed together: as many as fill a core's caches, and not the memory


@torch.no_grad()
def logit_lens(model: Checkpoint | Llama, tokens: Sequence[int] | Tensor) -> Tensor:
    """Every state of the stream, read as if it were the last: tokens [seq] -> float32 [n_layers + 1, seq, vocab].

    Row 0 reads the embeddings, row l + 1 the stream after layer l; the last row is the model's logits. Raises what
    `functional.forward` raises for `tokens`.
    """
    return torch.stack([read(model, state) for state in states(model, tokens)])


@torch.no_grad()
def jacobian_lens(
    model: Checkpoint | Llama, tokens: Sequence[int] | Tensor, layers: Sequence[int], contexts: Contexts = CONTEXTS
) -> Tensor:
    """What the stream after each of `layers` leans towards saying: tokens [seq] -> float32 [len(layers), seq, vocab].

    Scores like logits: their order counts, and they are not calibrated. `contexts` are the other texts in which the
    push is measured; see `push`, and what it raises. For n tokens here and c in all contexts, the work in each layer
    above is about that of reading n * c tokens.
    """
    layers = check_layers(layers, model.params.n_layers)
    texts, inside = _padded(model, contexts, skip=1)
    here, elsewhere = states(model, tokens), states(model, texts)
    pushed = [
        _push(model, here[layer + 1], layer, elsewhere[layer + 1], inside)
        for layer in progress(layers, "J-lens", "layer")
    ]
    return torch.stack([read(model, state) for state in pushed])


@torch.no_grad()
def push(
    model: Checkpoint | Llama, directions: Tensor, layer: int, contexts: Contexts = CONTEXTS, skip: int = 1
) -> Tensor:
    """How directions after `layer` move the last stream, to first order, on average: [n, dim] -> float32 [n, dim].

    Each direction is the tangent at every position of a context but the last and the first `skip` (the first token is
    a giant of its own; the paper's code skips sixteen, in longer texts). A forward derivative takes it through the
    remaining layers, and what arrives at these positions is added up and divided by their number. That is J times the
    direction, J the mean over positions t of the sum over t' >= t of d last_stream[t'] / d stream[t], without ever
    holding J, [dim, dim]. The result is the mean over contexts: strings where `model` is a Checkpoint, else lists of
    token ids.

    Raises ValueError for a layer that is not there, no context, or one of fewer than skip + 2 tokens; TypeError for
    strings with a Llama.
    """
    (layer,) = check_layers([layer], model.params.n_layers)
    texts, inside = _padded(model, contexts, skip)
    return _push(model, directions, layer, states(model, texts)[layer + 1], inside)


def _push(model: Checkpoint | Llama, directions: Tensor, layer: int, stream: Tensor, inside: Tensor) -> Tensor:
    """`push`, with the contexts' stream after the layer, [contexts, seq, dim], and [contexts, seq], true where to."""
    there = inside[..., None].to(stream)  # [contexts, seq, 1]

    def rest(stream: Tensor) -> Tensor:
        return climb(model, stream, layer + 1)

    def moved(direction: Tensor) -> Tensor:  # [dim] -> [dim]
        tangent: Tensor = torch.func.jvp(rest, (stream,), (direction.type_as(stream) * there,))[1]
        arrived = (tangent * there).sum(1, dtype=torch.float32) / there.sum(1)  # [contexts, dim]
        return arrived.mean(0)

    with sdpa_kernel(SDPBackend.MATH):  # torch's faster kernels of attention have no forward derivative
        at_once = max(1, _ROWS // inside.numel())
        result: Tensor = torch.func.vmap(moved, chunk_size=at_once)(directions)
        return result


def _padded(model: Checkpoint | Llama, contexts: Contexts, skip: int) -> tuple[Tensor, Tensor]:
    """The contexts side by side, and where to push: ids and bool, each [contexts, seq].

    The last token of each is left out, since it is neither pushed nor read and none before it can see it. Nor can any
    see the padding behind it.
    """
    if isinstance(model, Checkpoint) and (tokenizer := model.tokenizer) is not None:
        contexts = [tokenizer.encode(c, bos=tokenizer.add_bos) if isinstance(c, str) else c for c in contexts]
    if not contexts:
        raise ValueError("no context: a push needs a text to be measured in")
    texts = [check_tokens(check_context(c, skip), model.params.vocab_size)[:-1] for c in contexts]
    ids, inside = torch.zeros(2, len(texts), max(map(len, texts)), dtype=torch.long)
    for n, text in enumerate(texts):
        ids[n, : len(text)] = text
        inside[n, skip : len(text)] = 1
    return ids, inside.bool()


def states(model: Checkpoint | Llama, tokens: Sequence[int] | Tensor) -> list[Tensor]:
    """The stream before the first layer and after each: tokens [..., seq] -> n_layers + 1 times [..., seq, dim]."""
    tokens = check_tokens(tokens, model.params.vocab_size)
    check_length(tokens.shape[-1], model.params.context_len)
    table = weights_of(model)["tok_embeddings.weight"]
    found = [table[tokens.to(table.device)]]
    for layer in progress(range(model.params.n_layers), "layers"):
        found.append(climb(model, found[-1], layer, layer + 1))
    return found


def climb(model: Checkpoint | Llama, stream: Tensor, start: int, stop: int | None = None) -> Tensor:
    """From layer `start` to before `stop`, or to the end: [..., seq, dim] -> the same, before the last norm."""
    params, weights, seq = model.params, weights_of(model), stream.shape[-2]
    freqs_cis = functional.rotations(params, seq).to(stream.device)
    mask = functional.causal_mask(seq, stream.dtype, stream.device)
    for layer in range(start, params.n_layers if stop is None else stop):
        stream = functional.transformer_block(stream, weights, layer, params, freqs_cis, mask)
    return stream


def read(model: Checkpoint | Llama, state: Tensor) -> Tensor:
    """Last norm and output matrix: [..., dim] -> float32 scores [..., vocab]."""
    weights = weights_of(model)
    gain = weights["norm.weight"]
    normed = functional.rms_norm(state.type_as(gain), gain, model.params.norm_eps)
    return functional.linear(normed, functional.output_weight(weights)).float()
