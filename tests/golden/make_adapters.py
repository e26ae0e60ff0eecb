#!/usr/bin/env python3
"""Writes golden PEFT folders on the models of `make_fixtures.py`, to hold the engine's adapters against.

    pip install torch transformers peft safetensors
    python make_adapters.py --models tests/golden/models --out tests/golden/adapters

The folders were made with torch 2.15.0, transformers 5.24.0 and peft 0.21.2.

For each case a folder as PEFT saves it (its base by a relative path; README.md left out), and beside it `expected.safetensors`, for the
rows of the base's own `expected.safetensors`:
    logits       (3, 24, V) f32  of a language model
    token_scores (3, 24)    f32  of a reward model, the head at every position
    loss         (1,)       f32  mean next-token cross-entropy, or mean(scores at the last valid token ^ 2) / 2
    grad.NAME    f32             gradient of `loss` with respect to the trained tensor NAME, called as in the engine
"""
import argparse, json, os
import torch, torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CASES = {  # base, task, LoRA
    "llama": ("llama", "CAUSAL_LM", dict(r=4, lora_alpha=6, layers_to_transform=[1, 2], target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])),
    "gpt2": ("gpt2", "CAUSAL_LM", dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["c_attn", "c_proj"])),
    "llama_reward": ("llama", "SEQ_CLS", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
}


def randomise(model):
    for name, p in model.named_parameters():
        if "lora_" in name or "score" in name:
            torch.nn.init.normal_(p, std=0.2)


def expected(model, task, base):
    ids, lengths = base["input_ids"], base["lengths"]
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    if task == "SEQ_CLS":
        hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        scores = model.base_model.model.score(hidden).squeeze(-1)
        last = scores[torch.arange(len(ids)), lengths - 1]
        return {"token_scores": scores, "loss": (last ** 2).mean().reshape(1) / 2}
    logits = model(input_ids=ids, attention_mask=mask).logits
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1))
    return {"logits": logits, "loss": loss.reshape(1)}


def engine_name(name):
    name = name.removeprefix("base_model.model.").replace(".default", "")
    return name.replace("score.modules_to_save.", "score.")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--models", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--seed", type=int, default=7)
    args = args.parse_args()
    for case, (name, task, lora) in CASES.items():
        torch.manual_seed(args.seed)
        base, folder = os.path.join(args.models, name), os.path.join(args.out, case)
        kind = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
        labels = {} if task == "CAUSAL_LM" else dict(num_labels=1)
        model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", **labels)
        model = get_peft_model(model, LoraConfig(task_type=task, bias="none", lora_dropout=0.0, **lora))
        randomise(model)
        model.eval()
        out = expected(model, task, load_file(os.path.join(base, "expected.safetensors")))
        out["loss"].backward()
        grads = {f"grad.{engine_name(n)}": p.grad for n, p in model.named_parameters() if p.requires_grad}
        model.save_pretrained(folder)
        os.remove(os.path.join(folder, "README.md"))
        config = os.path.join(folder, "adapter_config.json")
        with open(config) as f:
            keys = json.load(f)
        keys["base_model_name_or_path"] = os.path.relpath(base, folder)
        with open(config, "w") as f:
            json.dump(keys, f, indent=2, sort_keys=True)
            f.write("\n")
        tensors = {k: v.detach().contiguous() for k, v in {**out, **grads}.items()}
        save_file(tensors, os.path.join(folder, "expected.safetensors"))


if __name__ == "__main__":
    main()
