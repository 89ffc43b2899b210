"""The head in chunks: losses and gradients are those of all logits at once, whatever a model does with its logits, and
what a step holds of memory does not grow with the logits.
"""

import pytest
import torch
from adapters import trial
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
)

from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.gauge import CountAllocations, held, peak_during
from bitlora.engine.memory import LongestRow
from bitlora.forward.head import CHUNK_ROWS, Head
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
VOCAB = 50
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0,
         "intermediate_size": 24, "num_key_value_heads": 2, "initializer_range": 0.5}  # fmt: skip
TAILS = {
    "plain": LlamaConfig(**SMALL),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "capped": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    "divided": GraniteConfig(**SMALL, logits_scaling=4.0),
    "scaled": CohereConfig(**SMALL, logit_scale=0.25),
    "projected": OPTConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24,
                           word_embed_proj_dim=8, init_std=0.5),
}  # fmt: skip
TOKENS = torch.arange(24) * 7 % VOCAB
KEEP = torch.tensor([2, 3, 5, 6, 7, 11, 12, 13, 17, 19, 20])
TARGETS = TOKENS[KEEP + 1]


def model_of(config, dtype):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)


def decoded(model, hook):
    """Run the model with `hook` on what its decoder gives; gives the logits where something is to be predicted."""
    handle = model.get_decoder().register_forward_hook(hook)
    try:
        return model(input_ids=TOKENS[None], use_cache=False).logits[0, KEEP]
    finally:
        handle.remove()


def whole(model, weights):
    """The textbook: all logits of stock transformers, cross-entropy, autograd. Gives the losses and the gradient of the
    last hidden states."""
    seen = []

    def hook(module, given, out):
        out.last_hidden_state.requires_grad_()
        seen.append(out.last_hidden_state)

    logits = decoded(model, hook)
    high = logits if logits.dtype == torch.float64 else logits.float()
    losses = torch.nn.functional.cross_entropy(high, TARGETS, reduction="none")
    (gradient,) = torch.autograd.grad((losses * weights).sum(), seen)
    return losses.detach(), gradient[0, KEEP]


@pytest.mark.parametrize("rows", [1, 4, 10, 11, 100])
@pytest.mark.parametrize("tail", TAILS)
def test_losses_and_gradients_are_those_of_all_logits_at_once(tail, rows):
    model = model_of(TAILS[tail], torch.float64)
    weights = torch.linspace(0.1, 3, len(KEEP), dtype=torch.float64)
    losses, gradient = whole(model, weights)
    head = Head(model)
    head.rows = rows
    hidden = head.hidden(KEEP, input_ids=TOKENS[None]).requires_grad_()
    exact = {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(head.losses(hidden, TARGETS), losses, **exact)
    torch.testing.assert_close(head.backward(hidden, TARGETS, weights), losses, **exact)
    torch.testing.assert_close(hidden.grad, gradient, **exact)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_every_dtype(dtype, near):
    """Losses are in float32; the weights are in the gradient before it is rounded to 16 bits, where it would vanish."""
    model = model_of(TAILS["capped"], dtype)
    weights = torch.full((len(KEEP),), 2.0**12)
    losses, gradient = whole(model, weights)
    head = Head(model)
    head.rows = 4
    hidden = head.hidden(KEEP, input_ids=TOKENS[None]).requires_grad_()
    found = head.backward(hidden, TARGETS, weights)
    assert found.dtype == torch.float32
    assert hidden.grad.dtype == dtype
    torch.testing.assert_close(found, losses, rtol=near, atol=near)
    assert (hidden.grad.float() - gradient.float()).norm() <= near * gradient.float().norm()


def test_no_rows_are_no_error():
    head = Head(model_of(TAILS["plain"], torch.float32))
    hidden = head.hidden(KEEP[:0], input_ids=TOKENS[None]).requires_grad_()
    assert head.losses(hidden, TARGETS[:0]).shape == (0,)
    assert head.backward(hidden, TARGETS[:0], torch.empty(0)).shape == (0,)
    assert hidden.grad.shape == hidden.shape


def test_a_row_that_is_not_finite_changes_no_other_to_the_last_bit():
    head = Head(model_of(TAILS["capped"], torch.float32))
    head.rows = 4
    weights = torch.ones(len(KEEP))
    found = []
    for poison in (1.0, float("nan"), float("inf")):
        hidden = head.hidden(KEEP, input_ids=TOKENS[None]).clone()
        hidden[5, 3] *= poison
        hidden.requires_grad_()
        losses = head.backward(hidden, TARGETS, weights)
        others = torch.arange(len(KEEP)) != 5
        found.append((losses[others], hidden.grad[others]))
        # A cap may make infinity finite, or nan of it where the head has a zero: both are right, and processors differ.
        assert losses[5].isfinite() if poison == 1 else losses[5].isnan() or poison == float("inf")
    for losses, gradient in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_a_pass_that_raises_leaves_the_head_as_it_was():
    model = model_of(TAILS["plain"], torch.float32)
    head = Head(model)
    hidden = head.hidden(KEEP, input_ids=TOKENS[None])
    before = head.losses(hidden, TARGETS)
    with pytest.raises(RuntimeError):
        head.logits(hidden[:, :3])
    again = head.hidden(KEEP, input_ids=TOKENS[None])
    assert torch.equal(again, hidden)
    assert torch.equal(head.losses(again, TARGETS), before)


MANY = 128256
SLOTS, ROWS, LENGTH = 8, 4, 128


@pytest.fixture(scope="module")
def many_words(tmp_path_factory):
    """A tiny body under a vocabulary of 128,256 tokens."""
    folder = tmp_path_factory.mktemp("base") / "words"
    config = LlamaConfig(
        vocab_size=MANY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return load_base(BaseConfig(model=str(folder), quantization="none"), torch.float32, CPU)


def test_a_step_and_an_evaluation_hold_no_more_than_chunks(many_words):
    """Eight slots, 4 rows of 128 tokens each: all logits in float32 would be 2 GB, and twice that in a backward pass."""
    engine = Engine(many_words, SLOTS)
    slots = [engine.attach(trial("none", batch_size=ROWS, seed=number)) for number in range(SLOTS)]
    batch, less = (LongestRow(LENGTH, LENGTH - 1).rows(rows, MANY) for rows in (ROWS, 1))
    chunk = CHUNK_ROWS * MANY * 4
    for work in (lambda: engine.step(dict.fromkeys(slots, batch)), lambda: engine.evaluate(slots, less)):
        before = held(CPU)
        with CountAllocations() as counted:
            found, peak = peak_during(work, CPU)
        assert not any(each.failed for each in found.values())
        assert chunk < counted.peak < 2.5 * chunk
        assert peak - before < 0.8e9
    for slot in slots:
        engine.detach(slot)
