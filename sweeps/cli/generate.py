"""Ask a trial's adapter something, as it would be deployed: quantized, over the base it was trained over."""

from __future__ import annotations

from typing import Any

from sweeps.cli.trial_folder import TrialFolder


def generate(trial: TrialFolder, prompt: str, most: int) -> None:
    """Print the answer to `prompt`, word by word.

    The prompt is a user's turn, in the template that the trial was trained with. Each next token is the likeliest.

    Args:
        most: tokens of the answer.

    Raises:
        InputError: the base cannot be had any more, or is another one.
    """
    import torch
    from transformers import TextStreamer

    from bitlora.adapter.apply import attach_weights
    from bitlora.adapter.latent import quantized_weights
    from bitlora.adapter.peft_folder import adapter_config
    from bitlora.data.chat import prompt_text

    tokenizer = trial.tokenizer()
    c = trial.config
    weights = quantized_weights(trial.latent, c)
    described = adapter_config(c, trial.base.model, [*weights]) | {"activations": c.activations}
    model = attach_weights(trial.model(), weights, described)
    text = prompt_text(prompt, tokenizer)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=ends(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the base's, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    found = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return sorted(found - {None})
