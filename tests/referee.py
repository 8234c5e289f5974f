"""The independent referee: Hugging Face's LlamaForCausalLM over weights that carry Meta's names."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3_scratch import ModelArgs

_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hf_model(params: ModelArgs, weights: Mapping[str, Tensor], attention: str = "eager") -> LlamaForCausalLM:
    """Hugging Face's model over these very tensors; only wq and wk are copied. Every one must find its place.

    `attention` is theirs to choose from: "eager" is the plain formula, with no fused kernel to trust.
    """
    config = LlamaConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.dim,
        intermediate_size=weights["layers.0.feed_forward.w1.weight"].shape[0],  # as stored, not as ModelArgs derives it
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        max_position_embeddings=131072,
        rms_norm_eps=params.norm_eps,
        rope_parameters=rope_parameters(
            params.rope_theta,
            params.rope_factor,
            params.rope_low_freq_factor,
            params.rope_high_freq_factor,
            params.rope_old_context_len,
        ),
        tie_word_embeddings="output.weight" not in weights,
        attn_implementation=attention,
    )
    embeddings = weights["tok_embeddings.weight"]
    state = {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights.get("output.weight", embeddings),
    }
    for layer in range(params.n_layers):
        for meta_name, name in _NAMES.items():
            weight = weights[f"layers.{layer}.{meta_name}.weight"]
            if meta_name in ("attention.wq", "attention.wk"):
                weight = to_half_split(weight, params.head_dim)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    with torch.device("meta"):  # no memory, until the tensors of `state` take their places
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed, not loaded
    return model.eval()


def hf_logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """[seq] or [batch, seq] -> logits of the same leading sizes."""
    with torch.no_grad():
        logits = model(tokens.reshape(-1, tokens.shape[-1]), use_cache=False).logits
    return logits.reshape(*tokens.shape, -1)


def hf_greedy(model: LlamaForCausalLM, prompts: Sequence, count: int) -> list:
    """The most probable next token, `count` times: their own loop, with their own cache, stopped by nothing.

    One prompt, or a list of them, which are padded on the left, as they want it.
    """
    single = isinstance(prompts[0], int)
    prompts = [prompts] if single else prompts
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    is_token = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config.eos_token_id = None
    texts = model.generate(tokens, attention_mask=is_token, max_new_tokens=count, do_sample=False, pad_token_id=0)
    texts = texts[:, longest:].tolist()
    return texts[0] if single else texts


def to_half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows from Meta's pairs (0, 1), (2, 3), ... to Hugging Face's (0, d/2), (1, d/2 + 1), ...

    As `permute` in their convert_llama_weights_to_hf.py.
    """
    rows, columns = weight.shape
    return weight.view(-1, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def rope_parameters(
    theta: float, factor: float | None, low: float = 1.0, high: float = 4.0, old_context_len: int = 8192
) -> dict:
    """LlamaConfig's description of RoPE. The last three numbers are those of every Llama 3.1 and 3.2 config.json."""
    if factor is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": old_context_len,
    }


def random_tokens(params: ModelArgs, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(params.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def distance(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().nan_to_num(torch.inf).item()
