#!/usr/bin/env bash
# transformers 5.24.0: a Llama with biases in its attention, read back from a GGUF file that has them, comes without: another
# model, no error, no warning.
#
# The file's metadata have no key for attention_bias (llama.cpp takes the biases where the tensors are there), so the
# configuration that is made from them says False, the model has no such parameters, and what the file has for them is left
# out of what is loaded. The gguf package's own reader lists all four.
# Where: transformers/modeling_gguf_pytorch_utils.py, load_gguf_checkpoint.
#
# Seen on 2026-11-28, Python 3.11:
#   in the file: blk.0.attn_q.bias blk.0.attn_k.bias blk.0.attn_v.bias blk.0.attn_output.bias
#   read back: attention_bias False, biases [], warnings []
#   logits apart by more than 0.01 from the model that was written: True
#   logits apart from it once its biases are zero: 0.0
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
cat >"$folder/try.py" <<'PYTHON'
import logging
import sys
import warnings
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
SIZE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
model = LlamaForCausalLM(LlamaConfig(**SIZE, num_attention_heads=1, attention_bias=True, tie_word_embeddings=False))
biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
with torch.no_grad():
    for bias in biases:
        bias.normal_()


def as_llama_cpp_has_it(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Queries and keys with the two halves of a head interleaved."""
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    return tensor.unflatten(0, (1, 2, -1)).transpose(1, 2).flatten(0, 2)


path = Path(sys.argv[1]) / "model.gguf"
writer = gguf.GGUFWriter(path, "llama")
writer.add_context_length(2048)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_feed_forward_length(32)
writer.add_head_count(1)
writer.add_head_count_kv(1)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_vocab_size(32)
writer.add_rope_freq_base(10000.0)
writer.add_tokenizer_model("gpt2")
writer.add_token_list([f"t{number}" for number in range(32)])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, tensor in model.state_dict().items():
    writer.add_tensor(names.get_name(name, (".weight", ".bias")), as_llama_cpp_has_it(name, tensor).contiguous().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

stored = [tensor.name for tensor in gguf.GGUFReader(path).tensors if tensor.name.endswith("bias")]
said: list[str] = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("transformers").addHandler(handler)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
said += [str(warning.message) for warning in caught]
taken = [name for name, _ in loaded.named_parameters() if name.endswith("bias")]
tokens = torch.arange(8)[None]
with torch.no_grad():
    apart = (model(tokens).logits - loaded(tokens).logits).abs().max().item()
    for bias in biases:
        bias.zero_()
    without = (model(tokens).logits - loaded(tokens).logits).abs().max().item()
print("in the file:", *stored)
print(f"read back: attention_bias {loaded.config.attention_bias}, biases {taken}, warnings {said}")
print("logits apart by more than 0.01 from the model that was written:", apart > 0.01)
print("logits apart from it once its biases are zero:", without)
sys.exit(not (len(stored) == 4 and not taken and not said and apart > 0.01 and without == 0))
PYTHON
"$folder/env/bin/python" "$folder/try.py" "$folder" 2>/dev/null
