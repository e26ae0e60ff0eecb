#!/usr/bin/env python3
"""Holds a dpo run's first steps against TRL's trainers, side by side: loss, rewards, margins, log-probs, gradient norm.

By hand, for TRL is no part of the tests. `collimate dpo` must have run first with the same pairs in the same order (as many pairs a
step as there are, so that the order does not matter), a constant learning rate of 1e-3, no weight decay and max_length 48:

  python check_dpo.py --model MODEL --pairs pairs.jsonl --metrics RUN/dpo/metrics.jsonl --loss sigmoid --beta 0.1

Needs torch, transformers, datasets and trl (DPOTrainer; CPOTrainer for --loss simpo --gamma 1.0).
"""
import argparse
import json
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--pairs", required=True)
parser.add_argument("--metrics", required=True)
parser.add_argument("--loss", choices=["sigmoid", "ipo", "simpo"], default="sigmoid")
parser.add_argument("--beta", type=float, default=0.1)
parser.add_argument("--gamma", type=float, default=1.0)
arguments = parser.parse_args()

NAMES = {
    "loss": "train/loss", "rewards/margins": "rewards/margins", "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected", "grad_norm": "train/grad_norm",
}


def load():
    return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)


with open(arguments.pairs) as lines:
    pairs = [json.loads(line) for line in lines]
with open(arguments.metrics) as lines:
    ours = {line["step"]: line for line in map(json.loads, lines)}
common = dict(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(pairs), max_steps=5, learning_rate=1e-3,
    lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
    bf16=False, fp16=False, gradient_checkpointing=False, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
    beta=arguments.beta, max_length=48,
)
data = dict(train_dataset=Dataset.from_list(pairs), processing_class=AutoTokenizer.from_pretrained(arguments.model))
if arguments.loss == "simpo":
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = CPOConfig(loss_type="simpo", simpo_gamma=arguments.gamma, cpo_alpha=0.0, **common)
    trainer = CPOTrainer(model=load(), args=settings, **data)
else:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(model=load(), ref_model=load(), args=DPOConfig(loss_type=arguments.loss, **common), **data)
trainer.train()
for line in trainer.state.log_history:
    if "loss" in line:
        found = ours[line["step"]]
        parts = (f"{theirs} {float(line[theirs]):.6f} {float(line[theirs]) - found[own]:+.1e}" for theirs, own in NAMES.items())
        print(f"step {line['step']}:", ", ".join(parts))
