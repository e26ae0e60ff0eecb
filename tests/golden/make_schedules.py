#!/usr/bin/env python3
"""Writes schedules.json: learning rates of transformers' schedules as its trainer applies them.

    pip install "transformers==5.24.0" "torch==2.15.0"
    python make_schedules.py --out DIR

`rates[s - 1]` is the rate that the optimizer has when it takes its step s, counted from 1: the scheduler steps after the
optimizer, so that this is the schedule's `lr_lambda(s - 1)`. Cases: each type without and with warm-up (also as long as the
stage, and longer), 1, 2, 3 and 100 steps. `cosine_with_min_lr` and `polynomial` of power 1 are the cosine and the line to a floor.
"""
import argparse, json, os
import torch, transformers
from transformers import get_scheduler

PEAK, FLOOR = 3e-2, 0.1
TOTALS, WARMUPS = [1, 2, 3, 100], [0, 1, 2, 3, 10, 100, 150]
SPECIFIC = {"cosine_with_min_lr": {"min_lr_rate": FLOOR}, "polynomial": {"lr_end": FLOOR * PEAK, "power": 1.0}}

def rates(name, warmup, total):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=SPECIFIC.get(name))
    found = []
    for step in range(1, total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total:  # past the end `polynomial` divides by zero where the warm-up is as long as the stage
            scheduler.step()
    return found

def cases():
    for name in ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr", "polynomial"]:
        for warmup in WARMUPS if name != "constant" else [0]:
            for total in TOTALS:
                yield {"name": name, "learning_rate": PEAK, "warmup_steps": warmup, "total_steps": total,
                       "min_lr_ratio": FLOOR if name in SPECIFIC else 0.0, "rates": rates(name, warmup, total)}

if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("--out", required=True); a = a.parse_args()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    json.dump({"versions": versions, "cases": list(cases())}, open(os.path.join(a.out, "schedules.json"), "w"))
