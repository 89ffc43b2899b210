"""Which bases packs can hold, told from the configuration alone: refused by name, before anything is loaded or started.

The rows of all trials of a pack stand in one sequence (`bitlora.forward.forward_plan`), and attention alone knows them
apart. So every layer must mix tokens by attention and nothing else, that attention must be called through transformers'
`AttentionInterface`, and with options that packs know. All of it is seen by running the model without weights, on
PyTorch's meta device, with an attention that only listens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from bitlora.base.locate import BaseError
from bitlora.config.explain import one_line

HONOURED: Final = frozenset({"sliding_window", "softcap", "s_aux"})
"""Options of an attention call that packs do as the model asks: a window of tokens, a soft cap of the scores, learned
sinks (one more score for each head, whose value is nothing)."""
NEUTRAL: Final = frozenset(
    {
        "cache_position",
        "dropout",  # a frozen base has none
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",  # by then they are in the queries and keys
        "return_dict",
        "use_cache",
    }
)
"""Options that change nothing of what attention gives."""
KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers (`layer_types` of a configuration) that packs can hold."""
MOVING_ROPES: Final = ("dynamic", "longrope")
"""Rotary embeddings whose angles hang on the longest row of a pass."""
LISTENER: Final = "bitlora_listener"
"""The name of the attention that only listens."""
POSITION_TABLES: Final = frozenset({"wpe", "embed_positions", "position_embeddings"})
"""What transformers calls a table of learned positions."""


def unknown_option(mask: Tensor | None, options: Mapping[str, Any]) -> str:
    """What an attention call asks for that packs do not know; nothing where there is no such thing.

    Args:
        mask: the call's own; packs mask by rows.
        options: the call's further arguments, by name.
    """
    if mask is not None:
        return "a mask of its own"
    if options.get("is_causal") is False:
        return "attention to later tokens"
    for name, asked in options.items():
        off = asked is None or (isinstance(asked, bool | int | float) and not asked)
        if name not in HONOURED | NEUTRAL | {"is_causal"} and not off:
            return name
    return ""


def admit(model: Any, name: str, longest: int | None = None) -> None:
    """Refuse a base that packs cannot hold.

    Args:
        model: transformers' causal LM without weights, on the meta device.
        name: what the user calls it.
        longest: tokens of the longest row that it is to see.

    Raises:
        BaseError: it is quantized already; a layer mixes tokens otherwise than by attention, or by one that packs do not
            know; or rows of that length make the trials of a pack hang on each other.
    """
    config = model.config.get_text_config()
    for each in (model.config, config):
        quantized = getattr(each, "quantization_config", None)
        if quantized is not None:
            method = _entry(quantized, "quant_method") or "a method that it does not name"
            raise BaseError(
                f"base.model: {name} is stored quantized (by {method}); packs need its plain weights, which they put into "
                "NF4 themselves (base.quantization: nf4)"
            )
    kinds = [kind for kind in getattr(config, "layer_types", None) or [] if kind not in KNOWN_LAYERS]
    if kinds:
        raise BaseError(
            f"base.model: {name} has layers of the kind {kinds[0]!r} ({len(kinds)} of {len(config.layer_types)}), which "
            "mix tokens otherwise than packs can keep apart; they know full and sliding attention"
        )
    calls = _listen(model, name)
    unknown = next((option for option in (unknown_option(*call) for call in calls) if option), "")
    if unknown:
        raise BaseError(f"base.model: the attention of {name} asks for {unknown}, which packs do not know")
    layers = int(config.num_hidden_layers)
    if len(calls) != layers:
        raise BaseError(
            f"base.model: {name} has {layers} layers and calls attention {len(calls)} times; packs need one attention in "
            "each layer, and nothing else that mixes tokens"
        )
    convolution = next((at for at, module in model.get_decoder().named_modules() if isinstance(module, nn.Conv1d)), "")
    if convolution:
        raise BaseError(
            f"base.model: {name} mixes tokens in a convolution ({convolution}), which packs cannot keep apart"
        )
    if longest is not None:
        _fits(model, config, name, longest)


def _listen(model: Any, name: str) -> list[tuple[Tensor | None, dict[str, Any]]]:
    """The mask and the options of every attention call of one forward pass.

    Raises:
        BaseError: there is none, or the pass does not run.
    """
    from transformers import AttentionInterface

    calls: list[tuple[Tensor | None, dict[str, Any]]] = []

    def listen(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        options.pop("scaling", None)
        calls.append((mask, options))
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register(LISTENER, listen)
    model.set_attn_implementation(LISTENER)
    model.eval()
    model.config.pad_token_id = None  # with one, some models look for it among the tokens: there are none either
    for module in model.modules():  # a rotary embedding that looks at its positions: on the meta device there are none
        if getattr(module, "rope_type", None) in MOVING_ROPES:
            module.rope_type = "default"
    tokens = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    positions = torch.arange(4, device="meta")[None]
    why = ""
    try:
        with torch.no_grad():
            model(input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=tokens[0, :1])
    except Exception as error:  # whatever its own code raises: a pack would call it in the same way
        why = one_line(error)
    if not calls:  # it goes on attending in its own way, where that can be done without weights
        raise BaseError(
            f"base.model: {name} ({type(model).__name__}) does not call its attention through transformers' "
            "AttentionInterface, so packs cannot keep its rows apart"
        )
    if why:
        raise BaseError(f"base.model: {name} ({type(model).__name__}) does not run as packs call it: {why}")
    return calls


def _fits(model: Any, config: Any, name: str, longest: int) -> None:
    """Refuse rows that are longer than the positions know, or that change the positions of other rows."""
    for at, table in model.get_decoder().named_modules():
        if isinstance(table, nn.Embedding) and at.rsplit(".", 1)[-1] in POSITION_TABLES:
            most = table.num_embeddings - int(getattr(table, "offset", 0))
            if longest > most:
                raise BaseError(f"data.max_length: {longest}, and {name} knows {most} positions; give at most {most}")
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters, *(each for each in parameters.values() if isinstance(each, dict))]:
        kind = rope.get("rope_type")
        if kind not in MOVING_ROPES:
            continue
        most = int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        if longest > most:
            raise BaseError(
                f"data.max_length: {longest}; the rotary embedding of {name} ({kind}) turns otherwise for all rows as soon "
                f"as one has more than {most} tokens, so trials of a pack would change each other; give at most {most}"
            )


def _entry(held: Any, key: str) -> Any:
    return held.get(key) if isinstance(held, dict) else getattr(held, key, None)
