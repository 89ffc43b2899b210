"""The end of a model: from hidden states to logits, and to their loss with its gradient, some rows at a time.

Logits are the largest thing in a pass: a number for each token of the vocabulary at each place that is learned. Nothing
but the loss needs them, and the head is frozen. So they are made for a chunk of rows, and the chunk's loss and the
gradient of its hidden states are written before the next chunk's are made: no tensor has the vocabulary for all rows.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ROWS: Final = 256
"""Rows at once: with more of them no time is won (`tests/benchmarks/forms/head.py`), with fewer it is lost."""


class Head:
    """What a causal LM does behind its decoder, as its own code has it: a cap or a scale of the logits too.

    There is no call for that in transformers. So the model's own forward is run with a decoder that, meanwhile, gives what
    it is told to.

    Args:
        model: transformers' causal LM; from now on its decoder is called through here.
    """

    def __init__(self, model: Any) -> None:
        self.rows = CHUNK_ROWS
        """Of a chunk, at most."""
        self.width = 0
        """Of the hidden states, once a pass was made."""
        self._model = model
        decoder = model.get_decoder()
        self._decode = decoder.forward
        decoder.forward = self._decoded
        self._output: Any = None  # of the decoder's last call
        self._told: Any = None  # what it gives instead
        self._kind: Any = None  # the class of its output

    def _decoded(self, *arguments: Any, **options: Any) -> Any:
        if self._told is not None:
            return self._told
        self._output = self._decode(*arguments, **options)
        return self._output

    def hidden(self, keep: Tensor, **inputs: Any) -> Tensor:
        """One pass through the decoder.

        Args:
            keep: (K,) int64, places of its one row of tokens.
            inputs: of the model's forward.

        Returns:
            (K, width) in the model's dtype: what the head is given there.
        """
        try:
            self._model(**inputs, use_cache=False, logits_to_keep=keep[:0])
            last: Tensor = self._output.last_hidden_state
            self._kind, self.width = type(self._output), last.shape[-1]
            return last[0].index_select(0, keep)
        finally:
            self._output = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(K, width) of `hidden` -> (K, vocabulary), all rows at once, in the model's dtype."""
        self._told = self._kind(last_hidden_state=hidden[None])
        try:
            logits: Tensor = self._model(inputs_embeds=hidden[None].detach(), use_cache=False).logits
            return logits.flatten(0, 1)  # the gradient of `logits[0]` would be a copy
        finally:
            self._told = None

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each row.

        Args:
            hidden: (K, width).
            targets: (K,) int64, the tokens to be predicted.

        Returns:
            (K,) nats, in float32, or in float64 where the model is.
        """
        return self.scores(hidden, targets, False)[0]

    @torch.no_grad()
    def scores(self, hidden: Tensor, targets: Tensor, hits: bool) -> Tensor:
        """The losses, and where `hits` is asked for a row below them 1 where the target is the likeliest token.

        Args:
            hidden, targets: as of `losses`.

        Returns:
            (1, K), or (2, K) with hits, in the dtype of the losses.
        """
        parts = []
        for rows, wanted in zip(hidden.split(self.rows), targets.split(self.rows), strict=True):
            parts.append(_scores(_log_softmax(self.logits(rows)), wanted, hits))
        return torch.cat(parts, 1)

    def backward(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The losses, and the backward pass of their weighted sum.

        Args:
            hidden, targets: as of `losses`; `hidden` hangs on what is trained.
            weights: (K,) of the rows in that sum, in the dtype of what is returned. In float16 they keep the gradient
                where it has bits.

        Returns:
            As `losses`.
        """
        losses = torch.empty_like(weights)
        gradient = torch.empty_like(hidden)
        given = hidden.detach()
        for start in range(0, len(hidden), self.rows):
            chunk = slice(start, start + self.rows)
            losses[chunk], gradient[chunk] = self._chunk(given[chunk], targets[chunk], weights[chunk])
        hidden.backward(gradient)
        return losses

    def _chunk(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The losses of a chunk, and the gradient of their weighted sum to its hidden states."""
        hidden.requires_grad_()
        with torch.enable_grad():
            logits = self.logits(hidden)
        found = _log_softmax(logits.detach())
        losses = _target(found, targets).neg_()
        found.exp_().mul_(weights[:, None])
        found.scatter_add_(1, targets[:, None], -weights[:, None])
        (gradient,) = torch.autograd.grad(logits, hidden, found.to(logits.dtype))
        return losses, gradient


def _scores(found: Tensor, targets: Tensor, hits: bool) -> Tensor:
    """Of a chunk what `Head.scores` gives: nothing else of it is held when the next one is made."""
    losses = _target(found, targets).neg_()
    return torch.stack([losses, (found.argmax(-1) == targets).to(found.dtype)] if hits else [losses])


def _log_softmax(logits: Tensor) -> Tensor:
    """A tensor of its own, in float32 at least."""
    return F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _target(found: Tensor, targets: Tensor) -> Tensor:
    """Of each row the entry of its target."""
    return found.gather(1, targets[:, None])[:, 0]
