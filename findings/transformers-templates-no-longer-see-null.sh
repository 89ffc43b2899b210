#!/usr/bin/env bash
# transformers 5.24.0: apply_chat_template takes null keys out of every message, so a template that asks for a null content
# takes another branch than in 4.57.6, and the tool call of the turn is not in the text. No error, no warning.
#
# OpenAI's format gives an assistant's turn that only calls a tool `"content": null`, and templates test for it
# (`message['content'] is none`, as DeepSeek-R1's does for its calls). The key is not there any more when the template runs;
# what is undefined is not none in Jinja. The library's own render_jinja_template still passes it on.
# Where: transformers/utils/chat_template_utils.py, where messages are normalized before a template is rendered.
#
# Seen on 2026-11-28, Python 3.11:
#   transformers 4.57.6: apply_chat_template:   <user>Rain?<call>{"name": "weather"}<tool>no
#   transformers 5.24.0: apply_chat_template:   <user>Rain?<assistant><tool>no
#   transformers 5.24.0: render_jinja_template: <user>Rain?<call>{"name": "weather"}<tool>no
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/try.py" <<'PYTHON'
import json
import sys

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATE = """{%- for m in messages -%}
{%- if m['role'] == 'assistant' and m['content'] is none -%}
<call>{{ m['tool_calls'][0]['function'] | tojson }}
{%- else -%}
<{{ m['role'] }}>{{ m['content'] }}
{%- endif -%}
{%- endfor -%}"""
MESSAGES = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "weather"}}]},
    {"role": "tool", "content": "no"},
]
CALLED, LOST = '<user>Rain?<call>{"name": "weather"}<tool>no', "<user>Rain?<assistant><tool>no"
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
found = {
    "apply_chat_template": tokenizer.apply_chat_template(MESSAGES, chat_template=TEMPLATE, tokenize=False),
    "render_jinja_template": render_jinja_template([MESSAGES], None, chat_template=TEMPLATE)[0][0],
}
version = transformers.__version__
for name, text in found.items():
    print(f"transformers {version}: {name}: {text}")
assert MESSAGES[1]["content"] is None, json.dumps(MESSAGES)
first = {"4.57.6": CALLED, "5.24.0": LOST}[version]
sys.exit(found != {"apply_chat_template": first, "render_jinja_template": CALLED})
PYTHON
for version in 4.57.6 5.24.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "transformers==$version" jinja2==3.1.6
    "$folder/$version/bin/python" "$folder/try.py" 2>/dev/null
done
