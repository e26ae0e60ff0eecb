#!/usr/bin/env python3
"""Holds a dpo run's first steps against TRL's trainers, side by side: loss, rewards, margins, gradient norm, and the weights after them.

By hand, for TRL is no part of the tests. `collimate dpo` must have run five steps first with the same pairs in the same order (as many
pairs a step as there are, so that the order does not matter), a constant learning rate of 1e-3, no weight decay and max_length 48:

  python check_dpo.py --model MODEL --pairs pairs.jsonl --run RUN/dpo --loss sigmoid --beta 0.1

Of a run with [dpo.lora], `--adapter` is the PEFT folder that it started from. One that is trained further is `dpo.from`, and TRL copies it
as its reference. New ones are what a run of one step with learning_rate 0 leaves; TRL then makes adapters of its own by the same keys,
takes these values, and its reference is the model with adapters off.

Needs torch, transformers, datasets, peft and trl (DPOTrainer; CPOTrainer for --loss simpo --gamma 1.0).
"""
import argparse
import json
import os
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--pairs", required=True)
parser.add_argument("--run", required=True)
parser.add_argument("--adapter")
parser.add_argument("--loss", choices=["sigmoid", "ipo", "simpo"], default="sigmoid")
parser.add_argument("--beta", type=float, default=0.1)
parser.add_argument("--gamma", type=float, default=1.0)
arguments = parser.parse_args()

NAMES = {
    "loss": "train/loss", "rewards/margins": "rewards/margins", "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected", "grad_norm": "train/grad_norm",
}
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def load():
    return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)


def models():
    """What the trainer is given, and what its adapters begin as if it makes them itself."""
    if arguments.adapter is None:
        return dict(model=load()) if arguments.loss == "simpo" else dict(model=load(), ref_model=load()), None
    start = load_file(os.path.join(arguments.adapter, ADAPTER))
    if any(tensor.any() for name, tensor in start.items() if "lora_B" in name):
        return dict(model=PeftModel.from_pretrained(load(), arguments.adapter, is_trainable=True)), None
    keys = LoraConfig.from_pretrained(arguments.adapter)
    keys.inference_mode = False
    return dict(model=load(), peft_config=keys), start


with open(arguments.pairs) as lines:
    pairs = [json.loads(line) for line in lines]
with open(os.path.join(arguments.run, "metrics.jsonl")) as lines:
    ours = {line["step"]: line for line in map(json.loads, lines)}
common = dict(
    output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(pairs), max_steps=5, learning_rate=1e-3,
    lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, max_grad_norm=1.0,
    bf16=False, fp16=False, gradient_checkpointing=False, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
    beta=arguments.beta, max_length=48,
)
data = dict(train_dataset=Dataset.from_list(pairs), processing_class=AutoTokenizer.from_pretrained(arguments.model))
given, start = models()
if arguments.loss == "simpo":
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = CPOConfig(loss_type="simpo", simpo_gamma=arguments.gamma, cpo_alpha=0.0, **common)
    trainer = CPOTrainer(args=settings, **given, **data)
else:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(args=DPOConfig(loss_type=arguments.loss, **common), **given, **data)
if start is not None:
    set_peft_model_state_dict(trainer.model, start)
trainer.train()
worst = {}
for line in trainer.state.log_history:
    if "loss" in line:
        found = ours[line["step"]]
        gaps = {theirs: float(line[theirs]) - found[own] for theirs, own in NAMES.items()}
        print(f"step {line['step']}:", ", ".join(f"{name} {float(line[name]):.6f} {gap:+.1e}" for name, gap in gaps.items()))
        worst = {name: max(abs(gap), worst.get(name, 0.0)) for name, gap in gaps.items()}
trained = trainer.model.state_dict() if arguments.adapter is None else get_peft_model_state_dict(trainer.model)
final = load_file(os.path.join(arguments.run, "final", WEIGHTS if arguments.adapter is None else ADAPTER))
assert final.keys() <= trained.keys(), final.keys() - trained.keys()
worst["weights"] = max((trained[name] - tensor).abs().max().item() for name, tensor in final.items())
print("largest differences:", ", ".join(f"{name} {gap:.1e}" for name, gap in worst.items()))
