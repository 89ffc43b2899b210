# ruff: noqa: E501
"""Chat templates of eight families, in our own words after their public definitions, and beside each the same in Python.

Of each template there is an `oracle`: from turns as OpenAI has them (and tools) to the rows that must come of them, a row as
pieces of text, each with whether it is learned. It uses nothing of the product and no Jinja."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

Turn = dict[str, Any]
Row = list[tuple[str, bool]]


class Family(NamedTuple):
    """A template, and what must come of it."""

    jinja: str
    bos: str
    eos: str
    oracle: Callable[[list[Turn], list[Turn]], list[Row]]
    tools: bool = True
    system: bool = True


SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|end|>", "<|endoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    *("<|begin|>", "<|sentence_end|>", "<|User|>", "<|Assistant|>", "<|calls|>", "<|calls_end|>", "<|output|>"),
)


def tokenizer(template: str | None, bos: str | None = None, eos: str | None = "<|im_end|>") -> Any:
    """A byte-level tokenizer that has the special tokens of all families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the happy user asks the assistant for the weather in Oslo, one two  three"] * 3, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    made.chat_template = template
    return made


def _args(call: Turn) -> Turn:
    found = call["function"]["arguments"]
    return json.loads(found) if isinstance(found, str) else found


def _learned(turns: list[Turn]) -> list[int]:
    return [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1) and i > 0]


def _each(turns: list[Turn], row: Callable[[list[Turn]], Row]) -> list[Row]:
    """A row for each assistant turn: what `row` writes up to it, of which only the last turn is learned."""
    return [row(turns[: i + 1]) for i in _learned(turns)]


CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chatml(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    row: Row = []
    for i, turn in enumerate(turns):
        row += [
            (f"<|im_start|>{turn['role']}\n", False),
            (f"{turn['content']}<|im_end|>", i in _learned(turns)),
            ("\n", False),
        ]
    return [row]


LLAMA3 = """\
{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- set ns = namespace(asked=false, system='') %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content | trim %}{% endif %}
{{- head('system') + 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + ns.system + '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.role == 'system' and loop.first %}{% continue %}{% endif %}
{%- if m.role == 'user' and tools and not ns.asked %}
{%- set ns.asked = true %}
{{- head('user') + 'Functions:\\n' }}{% for t in tools %}{{ t | tojson + '\\n' }}{% endfor %}{{ m.content | trim + '<|eot_id|>' }}
{%- elif m.tool_calls %}
{{- head('assistant') }}{% for c in m.tool_calls %}{{ '{"name": "' + c.function.name + '", "parameters": ' + c.function.arguments | tojson + '}' }}{% endfor %}{{ '<|eot_id|>' }}
{%- elif m.role == 'tool' %}{{ head('ipython') + m.content + '<|eot_id|>' }}
{%- else %}{{ head(m.role) + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""


def llama3(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    def head(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    system = turns[0]["content"].strip() if turns[0]["role"] == "system" else ""
    row: Row = [(f"<|begin_of_text|>{head('system')}Today Date: 26 Jul 2024\n\n{system}<|eot_id|>", False)]
    told = False
    for i, turn in enumerate(turns):
        if turn["role"] == "system":
            continue
        said = (turn["content"] or "").strip()
        if turn["role"] == "user" and tools and not told:
            told, said = True, "Functions:\n" + "".join(json.dumps(tool) + "\n" for tool in tools) + said
        for call in turn.get("tool_calls", ()):
            said = f'{{"name": "{call["function"]["name"]}", "parameters": {json.dumps(_args(call))}}}'
        row += [(head({"tool": "ipython"}.get(turn["role"], turn["role"])), False)]
        row += [(f"{said}<|eot_id|>", i in _learned(turns))]
    return [row]


MISTRAL = """\
{%- set ns = namespace(system='', last=0) %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content + '\\n\\n' %}{% endif %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (ns.system if loop.index0 == ns.last else '') + m.content + '[/INST]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for c in m.tool_calls %}
{%- if c.id is undefined or c.id | length != 9 %}{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}
{{- {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}
{%- endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + {'content': m.content, 'call_id': m.tool_call_id} | tojson + '[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""


def mistral(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    def one(part: list[Turn]) -> Row:
        last = max(i for i, turn in enumerate(part) if turn["role"] == "user")
        system = f"{part[0]['content']}\n\n" if part[0]["role"] == "system" else ""
        row: Row = [("<s>", False)]
        for i, turn in enumerate(part):
            if turn["role"] == "user":
                listed = f"[AVAILABLE_TOOLS] {json.dumps(tools)}[/AVAILABLE_TOOLS]" if tools and i == last else ""
                row += [(f"{listed}[INST] {system if i == last else ''}{turn['content']}[/INST]", False)]
            elif turn["role"] == "tool":
                result = json.dumps({"content": turn["content"], "call_id": turn["tool_call_id"]})
                row += [(f"[TOOL_RESULTS] {result}[/TOOL_RESULTS]", False)]
            elif turn.get("tool_calls"):
                calls = [
                    {"name": c["function"]["name"], "arguments": _args(c), "id": c["id"]} for c in turn["tool_calls"]
                ]
                row += [(f"[TOOL_CALLS] {json.dumps(calls)}</s>", i in of)]
            elif turn["role"] == "assistant":
                row += [(f" {turn['content'].strip()}</s>", i in of)]
        return row

    asked = sum(turn["role"] == "user" for turn in turns)
    moves = asked > 1 and (tools or turns[0]["role"] == "system")  # tools and system stand at the last user's turn
    of = _learned(turns)
    if not moves:
        return [one(turns)]
    rows = []
    for i in _learned(turns):
        of = [i]
        rows.append(one(turns[: i + 1]))
    return rows


GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def gemma(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    row: Row = [("<bos>", False)]
    for i, turn in enumerate(turns):
        role = {"assistant": "model"}.get(turn["role"], turn["role"])
        row += [(f"<start_of_turn>{role}\n", False), (f"{turn['content'].strip()}<end_of_turn>", i in _learned(turns))]
        row += [("\n", False)]
    return [row]


PHI3 = """\
{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""


def phi3(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    row: Row = []
    for i, turn in enumerate(turns):
        row += [(f"<|{turn['role']}|>\n", False), (f"{turn['content']}<|end|>", i in _learned(turns))]
        row += [("\n", i == len(turns) - 1 and i in _learned(turns))]
    return [[*row, ("<|endoftext|>", turns[-1]["role"] == "assistant")]]


QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') + '# Tools\\n' }}
{%- for t in tools %}{{ t | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'system' and tools %}{% continue %}{% endif %}
{%- if m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif m.role == 'assistant' %}
{%- set said = m.content or '' %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if not thought and '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- said }}
{%- for c in m.tool_calls or [] %}
{{- ('\\n' if said or not loop.first else '') + '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- (c.function.arguments if c.function.arguments is string else c.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""


def qwen3(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    def one(part: list[Turn]) -> Row:
        last = max((i for i, turn in enumerate(part) if turn["role"] == "user"), default=0)
        system = part[0]["content"] if part[0]["role"] == "system" else None
        row: Row = []
        if tools:
            row += [(f"<|im_start|>system\n{system + chr(10) * 2 if system else ''}# Tools\n", False)]
            row += [("".join(json.dumps(tool) + "\n" for tool in tools) + "<|im_end|>\n", False)]
        for i, turn in enumerate(part):
            learn = i == len(part) - 1
            if turn["role"] == "system" and tools:
                continue
            if turn["role"] == "tool":  # never two in a row here
                row += [(f"<|im_start|>user\n<tool_response>\n{turn['content']}\n</tool_response><|im_end|>\n", False)]
            elif turn["role"] != "assistant":
                row += [(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n", False)]
            else:
                said, thought = turn["content"] or "", turn.get("reasoning_content", "")
                block = f"<think>\n{thought}\n</think>\n\n" if i > last and (learn or thought) else ""
                calls = [
                    f'<tool_call>\n{{"name": "{c["function"]["name"]}", "arguments": {json.dumps(_args(c))}}}\n</tool_call>'
                    for c in turn.get("tool_calls", ())
                ]
                said += ("\n" if said and calls else "") + "\n".join(calls)
                row += [("<|im_start|>assistant\n", False), (f"{block}{said}<|im_end|>", learn), ("\n", False)]
        return row[:-1] if len(_learned(turns)) > 1 else row

    return _each(turns, one)


R1 = """\
{%- set ns = namespace(system='') %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endif %}{% endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none %}
{{- '<|Assistant|><|calls|>' }}
{%- for c in m.tool_calls %}{{ c.function.name + '\\n' + c.function.arguments }}{% endfor %}{{ '<|calls_end|>' + eos_token }}
{%- elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}
{%- elif m.role == 'tool' %}{{ '<|output|>' + m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""


def r1(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    def one(part: list[Turn]) -> Row:
        system = "".join(turn["content"] for turn in part if turn["role"] == "system")
        row: Row = [("<|begin|>" + system, False)]
        for i, turn in enumerate(part):
            calls = "".join(f"{c['function']['name']}\n{json.dumps(_args(c))}" for c in turn.get("tool_calls", ()))
            body = f"<|calls|>{calls}<|calls_end|>" if calls else turn["content"]
            if turn["role"] == "user":
                row += [(f"<|User|>{body}", False)]
            elif turn["role"] == "tool":
                row += [(f"<|output|>{body}", False)]
            elif turn["role"] == "assistant" and i == len(part) - 1:
                thought = turn.get("reasoning_content", "")
                row += [("<|Assistant|><think>\n", False), (f"{thought}\n</think>\n\n{body}<|sentence_end|>", True)]
            elif turn["role"] == "assistant":
                row += [(f"<|Assistant|>{body}<|sentence_end|>", False)]
        return row

    return _each(turns, one)


GPT_OSS = """\
{{- '<|start|>system<|message|>You are ChatGPT.<|end|>' }}
{%- set first = messages[0].role in ('system', 'developer') %}
{%- if first or tools %}
{{- '<|start|>developer<|message|>' }}
{%- if first %}{{ '# Instructions\\n\\n' + messages[0].content }}{% endif %}
{%- if tools %}{{ '# Tools\\n' }}{% for t in tools %}{{ 'type ' + t.function.name + ' = () => any;\\n' }}{% endfor %}{% endif %}
{{- '<|end|>' }}
{%- endif %}
{%- set ns = namespace(called='') %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' %}
{{- '<|start|>functions.' + ns.called + ' to=assistant<|channel|>commentary<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.thinking and loop.last and not add_generation_prompt %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{%- endif %}
{%- if m.tool_calls %}
{%- set ns.called = m.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + ns.called + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


def gpt_oss(turns: list[Turn], tools: list[Turn]) -> list[Row]:
    def one(part: list[Turn], learned: list[int], closed: bool) -> Row:
        first = part[0]["role"] in ("system", "developer")
        row: Row = [("<|start|>system<|message|>You are ChatGPT.<|end|>", False)]
        if first or tools:
            text = f"# Instructions\n\n{part[0]['content']}" if first else ""
            text += (
                "# Tools\n" + "".join(f"type {t['function']['name']} = () => any;\n" for t in tools) if tools else ""
            )
            row += [(f"<|start|>developer<|message|>{text}<|end|>", False)]
        called = ""
        for i, turn in enumerate(part):
            last, learn = i == len(part) - 1 and closed, i in learned
            if turn["role"] == "user":
                row += [(f"<|start|>user<|message|>{turn['content']}<|end|>", False)]
            elif turn["role"] == "tool":
                head = f"<|start|>functions.{called} to=assistant<|channel|>commentary<|message|>"
                row += [(f"{head}{turn['content']}<|end|>", False)]
            elif turn["role"] == "assistant":
                row += [("<|start|>assistant", False)]
                if turn.get("reasoning_content") and last:
                    row += [
                        (f"<|channel|>analysis<|message|>{turn['reasoning_content']}<|end|><|start|>assistant", learn)
                    ]
                if turn.get("tool_calls"):
                    call = turn["tool_calls"][0]
                    called = call["function"]["name"]
                    head = f" to=functions.{called}<|channel|>commentary json<|message|>"
                    row += [(f"{head}{json.dumps(_args(call))}<|call|>", learn)]
                else:
                    end = "<|return|>" if last else "<|end|>"
                    row += [(f"<|channel|>final<|message|>{turn['content']}{end}", learn)]
        return row

    # what a call ends with stays; only the last answer ends with <|return|>
    answers = [i for i in _learned(turns) if not turns[i].get("tool_calls")]
    if answers == [len(turns) - 1] and not any(turn.get("reasoning_content") for turn in turns):
        return [one(turns, _learned(turns), True)]
    return _each(turns, lambda part: one(part, [len(part) - 1], True))


FAMILIES = {
    "chatml": Family(CHATML, "<s>", "<|im_end|>", chatml, tools=False),
    "llama3": Family(LLAMA3, "<|begin_of_text|>", "<|eot_id|>", llama3),
    "mistral": Family(MISTRAL, "<s>", "</s>", mistral),
    "gemma": Family(GEMMA, "<bos>", "<end_of_turn>", gemma, tools=False, system=False),
    "phi3": Family(PHI3, "<s>", "<|endoftext|>", phi3, tools=False),
    "qwen3": Family(QWEN3, "<|im_start|>", "<|im_end|>", qwen3),
    "r1": Family(R1, "<|begin|>", "<|sentence_end|>", r1, tools=False),
    "gpt_oss": Family(GPT_OSS, "<|start|>", "<|return|>", gpt_oss),
}
