"""Makes prefixed.json: ids of prompts, completions and chats by tokenizers that put a space before a text.

    pip install transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
    python make_prefixed.py > prefixed.json

Small BPE tokenizers are trained here in the forms that Llama 2, TinyLlama, Mistral 0.1 and Zephyr have: the normalizers
Prepend and Replace with byte fallback; the pre-tokenizer Metaspace, first and always; and byte-level with add_prefix_space.
The templates are written for this test in the manner of Llama 2's, Zephyr's and Mistral's.

Each case has the ids that transformers gives for the whole text, and whether its borders (between prompt and completion,
around each answer) fall between two tokens. Only then are the ids of the spans, joined, those of the whole.
"""

import json
import sys
import tempfile

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEXTS = [
    "The capital of France is Paris. The capital of Spain is Madrid.",
    "Hello there, how are you today? I am here, and you are there.",
    "What is 12 + 34 + 56 + 78? It is 180, or so I think.",
    "One two three four five, and then one more: [INST] say hello [/INST] Hello.",
] * 8
BYTES = [f"<0x{i:02X}>" for i in range(256)]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPLIT = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def trained(normalizer, pre_tokenizer, decoder, byte_level=False):
    start = ["<unk>", "<s>", "</s>"] + ([] if byte_level else BYTES)
    learner = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    # Merges are learned within words, as SentencePiece does, in whatever form the tokenizer has afterwards.
    learner.pre_tokenizer = pre_tokenizer if byte_level else metaspace("always", True)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    learner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=len(start) + len(alphabet) + 150, special_tokens=start, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    if byte_level:
        made = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges))
    else:
        made = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for name, part in dict(normalizer=normalizer, pre_tokenizer=pre_tokenizer).items():
        if part is not None:
            setattr(made, name, part)
    made.decoder = decoder
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")])
    made.add_tokens(
        [
            AddedToken("<|im|>", rstrip=True, normalized=False, special=True),
            AddedToken("<|l|>", lstrip=True, normalized=False, special=True),
            AddedToken("[NORM]", normalized=True),
            AddedToken("[RAW]", normalized=False),
        ]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return json.loads(made.to_str())


def metaspace(scheme, split):
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)


TOKENIZERS = {
    "prepend": trained(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, SPLIT),
    "first": trained(None, metaspace("first", False), SPLIT),
    "always": trained(None, metaspace("always", True), SPLIT),
    "words": trained(None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace("always", True)]), SPLIT),
    "byte_level": trained(None, pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel(), byte_level=True),
}

FAST = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}
# Which tokenizer a folder has, its tokenizer_config.json, and the model_type of its config.json.
FOLDERS = {
    "prepend": ["prepend", FAST, None],
    "first": ["first", FAST, None],
    "always": ["always", FAST, None],
    "words": ["words", FAST, None],
    "byte_level": ["byte_level", FAST, None],
    "no_bos": ["prepend", {**FAST, "add_bos_token": False}, None],
    "llama": ["prepend", {**FAST, "tokenizer_class": "LlamaTokenizer", "legacy": False}, "llama"],
    "llama_unsaid": ["prepend", {**FAST, "tokenizer_class": "LlamaTokenizerFast"}, None],
    "llama_legacy": ["prepend", {**FAST, "tokenizer_class": "LlamaTokenizer", "legacy": True}, "llama"],
    "llama_bare": ["prepend", {**FAST, "tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, "llama"],
    "mistral": ["prepend", {**FAST, "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}, "mistral"],
}

PAIRS = [
    ["The capital of France is", " Paris."],
    ["The capital of France is ", "Paris."],
    ["12", "34"],
    ["12 + ", "34"],
    ["Hello", ", how are you?"],
    ["Hello there", "  you  two"],
    ["a\n", "b\n c"],
    ["", "Hello there"],
    ["", " Hello there"],
    ["na\u00efve", " caf\u00e9 \u4f60\u597d\u3002"],
    ["\u4f60", "\u597d"],
    ["The end</s>", "Paris"],
    ["The end</s>", " Paris"],
    ["The end</s> ", "Paris"],
    ["it is", "</s> Paris</s>x"],
    ["one", " two<|im|>  three <|l|> four"],
    ["one<|im|>", "two"],
    ["one<|l|>", " two"],
    ["one[RAW]", "two [RAW] three[RAW]four"],
    ["one [NORM]", "two [NORM] three[NORM]four"],
    ["one", " [NORM]two"],
    ["one", "[NORM]two"],
]

TEMPLATES = {
    "llama2": """{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "zephyr": """{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}""",
    "mistral": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}""",
    "im": """{% for message in messages %}{{ '<|im|>' + message['role'] + '\\n<|im|>\\n' + message['content'] + '</s>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im|>assistant\\n<|im|>\\n' }}{% endif %}""",
}

CHATS = [
    [["user", "What is 12 + 34?"], ["assistant", "It is 46."], ["user", "And you?"], ["assistant", "Hello \u4f60\u597d,\nI am here"]],
    [["user", "Hello"], ["assistant", " two  spaces"]],
]


def loaded(name):
    json_name, config, model_type = FOLDERS[name]
    folder = tempfile.mkdtemp()
    files = {"tokenizer.json": TOKENIZERS[json_name], "tokenizer_config.json": config}
    if model_type is not None:
        files["config.json"] = {"model_type": model_type}
    for file, content in files.items():
        with open(f"{folder}/{file}", "w") as out:
            json.dump(content, out)
    return AutoTokenizer.from_pretrained(folder)


def is_border(encoding, at):
    """Whether the character `at` of the text begins a token, and the one before it ends one."""
    specials = encoding.special_tokens_mask
    spans = [span for span, special in zip(encoding.offsets, specials) if not special or span[0] < span[1]]
    end = max((end for _, end in spans), default=0)
    ends = at == 0 or any(stop == at for _, stop in spans)
    begins = at >= end or any(start == at for start, _ in spans)
    return ends and begins and not any(start < at < stop for start, stop in spans)


def plain(name, tokenizer, prompt, completion):
    whole = tokenizer(prompt + completion)
    ids = whole["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return {
        "folder": name,
        "prompt": prompt,
        "completion": completion,
        "prompt_ids": tokenizer(prompt)["input_ids"],
        "ids": ids,
        "border": is_border(whole.encodings[0], len(prompt)),
        # Where decoding gives the text back, the completion's ids must decode to the completion.
        "text_returns": text == prompt + completion,
    }


def chat(name, tokenizer, template, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    source = TEMPLATES[template]
    render = lambda upto, add: tokenizer.apply_chat_template(
        messages[:upto], chat_template=source, tokenize=False, add_generation_prompt=add
    )
    text = render(len(messages), False)
    whole = tokenizer(text, add_special_tokens=False)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    borders = [len(render(i, True)) for i in answers] + [len(render(i + 1, False)) for i in answers]
    prompt = render(answers[-1], True)
    return {
        "folder": name,
        "template": template,
        "messages": messages,
        "text": text,
        "ids": whole["input_ids"],
        "prompt_ids": tokenizer.apply_chat_template(
            messages[: answers[-1]], chat_template=source, add_generation_prompt=True, return_dict=False
        ),
        "prompt": prompt,
        "border": all(is_border(whole.encodings[0], at) for at in borders),
    }


transformers.logging.set_verbosity_error()
folders = {name: loaded(name) for name in FOLDERS}
golden = {
    "versions": {
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "jinja2": jinja2.__version__,
    },
    "tokenizers": TOKENIZERS,
    "folders": FOLDERS,
    "templates": TEMPLATES,
    "plain": [plain(name, tokenizer, *pair) for name, tokenizer in folders.items() for pair in PAIRS],
    "chats": [chat(name, tokenizer, template, turns) for name, tokenizer in folders.items() for template in TEMPLATES for turns in CHATS],
}
json.dump(golden, sys.stdout, ensure_ascii=False, separators=(",", ":"))
print()
