"""Makes templates.json: small chat templates of four families, rendered by apply_chat_template of transformers.

    pip install transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
    python make_templates.py > templates.json

The templates are written for this test; they use the constructs that published ones use (namespaces, slices, loop
controls, Python's string methods, tojson, strftime-free dates, raise_exception).
"""

import json
import sys

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml_default_system": """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou answer briefly.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>' ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama3_headers": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- if tools is not none and tools %}
    {{- 'tools: ' + (tools | tojson(indent=4)) }}
{%- endif %}
{%- for message in rest %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    "mistral_inst": """{{ bos_token }}{% set ns = namespace(turn=0) %}
{% for message in messages if message['role'] != 'system' %}
{% if (message['role'] == 'user') != (ns.turn % 2 == 0) %}
{{ raise_exception('user and assistant must alternate') }}
{% endif %}
{% set ns.turn = ns.turn + 1 %}
{% if message['role'] == 'user' %}
{% if loop.first and messages[0]['role'] == 'system' %}
[INST] {{ messages[0]['content'] }}

{{ message['content'] }} [/INST]
{%- else %}
[INST] {{ message['content'] }} [/INST]
{%- endif %}
{% else %}
 {{ message['content'].strip() }}{{ eos_token }}
{%- endif %}
{% endfor %}
""",
    "qwen_reasoning": """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == 'user' and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<call>' ~ {'name': call.name, 'arguments': call.arguments} | tojson ~ '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "odds_and_ends": """{# a comment #}
{% macro head(role, mark='#') %}
  {{ mark }} {{ role | title }}:
{%- endmacro %}
{% for message in messages %}
  {% if message.role == 'tool' %}{% continue %}{% endif %}
  {% generation %}
{{ head(message.role) }} {{ message.content | replace('a', 'A') | default('none', true) }}
  {% endgeneration %}
  {% if loop.index >= 3 %}{% break %}{% endif %}
{% else %}
nothing
{% endfor %}
{{ messages }} {{ true }} {{ none }} {{ 1.0 }} {{ 7 // 2 }} {{ 2 ** 3 }} {{ [1, 'x'] }} {{ undefined_name }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for key, value in messages[0].items() %}{{ key }}={{ value | tojson }};{% endfor %}

{{ messages[0] | tojson(indent=2) }}
{{- '%s' | format(pad_token) }} {{ 'a-b-c'.split('-')[1:] }} {{ (messages[-1].content ~ '')[:3] }}
""",
}

CHATS = [
    [{"role": "user", "content": " What is <b>\"1 & 1\"</b>? "}],
    [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "Salut, ça va? 你好"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n b\n"},
        {"role": "user", "content": "it's\nc"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nd"},
    ],
    [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": {"zone": "é", "x": [1, 2.5]}}]},
        {"role": "tool", "content": "<tool>12</tool>"},
        {"role": "user", "content": "<tool>12</tool>"},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "r", "thinking": None}],
]


TEMPLATES["qwen_tools"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content if message.content is defined else '') }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if message.name is defined %}{{- ' by ' ~ message.name }}{%- endif %}
        {%- if message.tool_call_id %}{{- ' for ' ~ message.tool_call_id }}{%- endif %}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if documents %}{{- 'documents: ' ~ documents | tojson }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
TEMPLATES["named"] = {"default": "plain {{ messages | length }}", "tool_use": "with {{ tools | length }} tools, {{ tools | tojson(indent=1) }}"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The \"weather\" in a city <é>, 1 & 2",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}, "days": {"type": "integer", "maximum": 7.0}}},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": None}}}
LOOP = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}, {"type": "text", "text": " Now."}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None},
    {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "c1"},
    {"role": "tool", "content": "sun", "tool_call_id": None},
    {"role": "assistant", "content": "Rain.", "tool_calls": None},
]
# What records give beside messages.
GIVEN = [
    {"messages": LOOP},
    {"messages": LOOP, "tools": [WEATHER, {"type": "function", "function": {"name": "f"}}]},
    {"messages": LOOP[1:2], "tools": []},
    {"messages": LOOP[:2], "tools": None, "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": LOOP[:2], "chat_template_kwargs": {"enable_thinking": True, "documents": [{"title": "t", "text": "é"}]}},
    {"messages": CHATS[0], "chat_template_kwargs": {"date_string": "1 Jan 2000", "bos_token": "<BOS>", "add_nothing": None}},
]


def tokenizer(template):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({token: i for i, token in enumerate(SPECIAL.values())}, unk_token="<pad>"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)
    made.chat_template = template
    return made


def rendered(template, messages, add_generation_prompt, tools=None, chat_template_kwargs=None):
    try:
        return tokenizer(template).apply_chat_template(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False, **(chat_template_kwargs or {})
        )
    except (jinja2.exceptions.TemplateError, TypeError):
        return None


cases = [
    {"template": name, **given, "add_generation_prompt": add, "text": rendered(template, add_generation_prompt=add, **given)}
    for name, template in TEMPLATES.items()
    for given in [{"messages": messages} for messages in CHATS] + (GIVEN if name in ("llama3_headers", "qwen_tools", "named") else [])
    for add in (False, True)
]
versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "jinja2": jinja2.__version__}
golden = {"versions": versions, "special_tokens": SPECIAL, "templates": TEMPLATES, "cases": cases}
json.dump(golden, sys.stdout, ensure_ascii=False, indent=1)
print()
