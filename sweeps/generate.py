"""Ask a trial's adapter something, as it would be deployed: quantized, over the base it was trained over."""

from __future__ import annotations

from typing import Any

from sweeps.ended import Ended


def generate(trial: Ended, prompt: str, most: int) -> None:
    """Print the answer to `prompt`, word by word.

    The prompt is a user's turn, in the template that the trial was trained with. Each next token is the likeliest.

    Args:
        most: tokens of the answer.

    Raises:
        InputError: the base cannot be had any more, or is another one.
    """
    import torch
    from transformers import TextStreamer

    from bitlora.chat import prompt_text
    from bitlora.checkpoint import bake
    from bitlora.export import attach_weights

    tokenizer = trial.tokenizer()
    c = trial.config
    model = attach_weights(trial.model(), bake(trial.latent, c), c.alpha, c.scaling == "rslora", c.activations)
    text = prompt_text(prompt, tokenizer)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=_ends(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the base's, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    found = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return sorted(found - {None})
