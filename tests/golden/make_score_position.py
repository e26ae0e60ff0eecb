#!/usr/bin/env python3
"""Writes reward models that are read before their padding, and what transformers says of sequences, one by one and padded in batches.

    pip install torch transformers peft safetensors tokenizers
    python make_score_position.py --out tests/golden/score_position

The folders were made with torch 2.15.0, transformers 5.24.0, peft 0.21.2 and tokenizers of that environment.

    pad_is_eos/      LlamaForSequenceClassification whose pad_token_id is its eos_token_id, as TRL leaves it
    other_pad/       the same weights with a padding token of its own
    no_pad/          the same weights with pad_token_id null
    base/            a language model; adapter/ is PEFT's SEQ_CLS folder on it, with a tokenizer whose pad_token is its eos_token
    expected.json    for each folder the sequences' ids, with "alone" (one sequence at a time), "right" and "left" (one batch, padded by
                     pad_token_id at that side); scores of transformers

Sequences end in EOS, twice in EOS, in no EOS, and have one inside.
"""
import argparse, json, os, shutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

EOS, PAD, VOCABULARY = 2, 1, 64
ROWS = [[20, 21, 22, 2], [20, 2, 21, 22, 2], [20, 21, 22], [30, 31, 2, 2], [40, 41, 42, 43, 44, 45, 2]]
SIZES = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=64, initializer_range=0.3, eos_token_id=EOS, bos_token_id=None)


def batch(model, side):
    width = max(map(len, ROWS))
    pad = model.config.pad_token_id
    fill = lambda row, value: [value] * (width - len(row))
    order = (lambda row, value, own: fill(row, value) + own) if side == "left" else (lambda row, value, own: own + fill(row, value))
    ids = torch.tensor([order(row, pad, row) for row in ROWS])
    mask = torch.tensor([order(row, 0, [1] * len(row)) for row in ROWS])
    return model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()


def scores(model):
    model.eval()
    with torch.no_grad():
        found = {"ids": ROWS, "alone": [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in ROWS]}
        if model.config.pad_token_id is not None:
            found |= {side: batch(model, side) for side in ("right", "left")}
    return found


def tokenizer():
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)} | {"<unk>": 0, "<pad>": PAD, "</s>": EOS}
    vocabulary = {token: i for token, i in vocabulary.items() if token not in ("t0", f"t{PAD}", f"t{EOS}")}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", required=True)
    out = args.parse_args().out
    torch.manual_seed(11)
    expected, state = {}, None
    for name, pad in (("pad_is_eos", EOS), ("other_pad", PAD), ("no_pad", None)):
        folder = os.path.join(out, name)
        model = LlamaForSequenceClassification(LlamaConfig(num_labels=1, pad_token_id=pad, **SIZES))
        state = state or model.state_dict()
        model.load_state_dict(state)
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        expected[name] = scores(AutoModelForSequenceClassification.from_pretrained(folder))
    base, adapter = os.path.join(out, "base"), os.path.join(out, "adapter")
    for folder in (base, adapter):
        shutil.rmtree(folder, ignore_errors=True)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(base)
    load = lambda: AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=EOS)
    model = get_peft_model(load(), LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    for name, p in model.named_parameters():
        if "lora_" in name or "score" in name:
            torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(adapter)
    tokenizer().save_pretrained(adapter)
    os.remove(os.path.join(adapter, "README.md"))
    path = os.path.join(adapter, "adapter_config.json")
    config = json.load(open(path))
    json.dump(config | {"base_model_name_or_path": "../base"}, open(path, "w"), indent=2, sort_keys=True)
    expected["adapter"] = scores(PeftModel.from_pretrained(load(), adapter))
    with open(os.path.join(out, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
