"""Makes templates.json: small chat templates of four families, rendered by transformers.

    pip install transformers==5.24.0 jinja2==3.1.6
    python make_templates.py > templates.json

The templates are written for this test; they use the constructs that published ones use (namespaces, slices, loop
controls, Python's string methods, tojson, strftime-free dates, raise_exception).
"""

import json
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

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


def rendered(template, messages, add_generation_prompt):
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **SPECIAL
        )
    except jinja2.exceptions.TemplateError:
        return None
    return texts[0]


cases = [
    {"template": name, "messages": messages, "add_generation_prompt": add, "text": rendered(template, messages, add)}
    for name, template in TEMPLATES.items()
    for messages in CHATS
    for add in (False, True)
]
versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
golden = {"versions": versions, "special_tokens": SPECIAL, "templates": TEMPLATES, "cases": cases}
json.dump(golden, sys.stdout, ensure_ascii=False, indent=1)
print()
