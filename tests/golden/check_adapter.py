#!/usr/bin/env python3
"""Loads a PEFT folder that the engine wrote with Python's peft, and holds its numbers against the engine's.

    pip install torch transformers peft safetensors
    python check_adapter.py --adapter runs/NAME/sft/final --collimate target/release/collimate

Random token ids go through `AutoModel... + PeftModel` and through `collimate score`: log-probs and entropies of a language model, scores
of a reward model. Prints the largest differences; ends with 1 where one is above 1e-4.
"""
import argparse, json, os, subprocess, sys, tempfile
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

TOLERANCE = 1e-4


def engine(args, base, rows):
    with tempfile.TemporaryDirectory() as folder:
        data, out = os.path.join(folder, "data.jsonl"), os.path.join(folder, "out.jsonl")
        with open(data, "w") as f:
            f.writelines(json.dumps({"ids": row}) + "\n" for row in rows)
        subprocess.run([args.collimate, "score", "--model", base, "--adapter", args.adapter, "--data", data, "--out", out], check=True)
        with open(out) as f:
            return [json.loads(line) for line in f]


def language(model, rows):
    for row in rows:
        log_p = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        yield {"logprobs": log_p[:-1].gather(1, torch.tensor(row[1:])[:, None]).squeeze(1),
               "entropy": -(log_p.exp() * log_p).sum(-1)}


def reward(model, rows):
    for row in rows:
        yield {"score": model(input_ids=torch.tensor([row])).logits[0, 0]}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--adapter", required=True)
    args.add_argument("--collimate", required=True)
    args = args.parse_args()
    config = PeftConfig.from_pretrained(args.adapter)
    base, scores = config.base_model_name_or_path, config.task_type == "SEQ_CLS"
    options = dict(dtype=torch.float32, attn_implementation="eager")
    if scores:
        # No row has token 0, so it may fill.
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0, **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, **options)
    model = PeftModel.from_pretrained(model, args.adapter).eval()
    draws = torch.Generator().manual_seed(5)
    ids = lambda n: torch.randint(3, model.config.vocab_size, (n,), generator=draws).tolist()
    rows = [ids(n) for n in (5, 17, 40)]
    worst = {}
    with torch.no_grad():
        expected = (reward if scores else language)(model, rows)
        for ours, theirs in zip(engine(args, base, rows), expected):
            for name, values in theirs.items():
                gap = (torch.tensor(ours[name]) - values).abs().max().item()
                worst[name] = max(worst.get(name, 0.0), gap)
    print(json.dumps({"adapter": args.adapter, "largest differences": worst}))
    sys.exit(any(not gap <= TOLERANCE for gap in worst.values()))


if __name__ == "__main__":
    main()
