#!/usr/bin/env python3
"""Loads a reward model that the engine wrote with transformers (and peft), pads batches by the folder's own tokenizer on both sides, and
holds the scores against `collimate score`.

    pip install torch transformers peft safetensors
    python check_reward.py --model runs/NAME/reward/final --collimate target/release/collimate

Rows are random tokens that end in the tokenizer's EOS. The folder is loaded as its user would: a whole model as it is, a PEFT folder on
its base with num_labels = 1 and the tokenizer's padding token. Checks that configuration and tokenizer name one padding token. Prints
the largest difference for rows alone and for each side; ends with 1 where one is above 1e-4 or the files disagree.
"""
import argparse, json, os, subprocess, sys, tempfile
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-4


def engine(args, rows):
    with tempfile.TemporaryDirectory() as folder:
        data, out = os.path.join(folder, "data.jsonl"), os.path.join(folder, "out.jsonl")
        with open(data, "w") as f:
            f.writelines(json.dumps({"ids": row}) + "\n" for row in rows)
        subprocess.run([args.collimate, "score", "--model", args.model, "--data", data, "--out", out], check=True)
        with open(out) as f:
            return torch.tensor([json.loads(line)["score"] for line in f])


def load(folder, tokenizer):
    options = dict(dtype=torch.float32, attn_implementation="eager")
    if not os.path.exists(os.path.join(folder, "adapter_config.json")):
        return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    options |= dict(num_labels=1, pad_token_id=tokenizer.pad_token_id)
    return PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, **options), folder).eval()


def padded(model, tokenizer, rows, side):
    batch = tokenizer.pad({"input_ids": rows}, padding=True, padding_side=side, return_tensors="pt")
    # Learned positions count from a row's own first token.
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions).logits[:, 0]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", required=True)
    args.add_argument("--collimate", required=True)
    args = args.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = load(args.model, tokenizer)
    special = set(tokenizer.all_special_ids)
    usual = [id for id in range(len(tokenizer)) if id not in special]
    draws = torch.Generator().manual_seed(5)
    ids = lambda n: [usual[i] for i in torch.randint(len(usual), (n,), generator=draws).tolist()]
    rows = [ids(n) + [tokenizer.eos_token_id] for n in (3, 11, 24)]
    found = engine(args, rows)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        gaps = {"alone": (found - alone).abs().max().item()}
        for side in ("right", "left"):
            gaps[side] = (found - padded(model, tokenizer, rows, side)).abs().max().item()
    pads = {"config": model.config.pad_token_id, "tokenizer": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    print(json.dumps({"model": args.model, "largest differences": gaps, "padding": pads}))
    agree = pads["config"] == pads["tokenizer"] is not None
    sys.exit(not agree or any(not gap <= TOLERANCE for gap in gaps.values()))


if __name__ == "__main__":
    main()
