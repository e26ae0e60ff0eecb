#!/usr/bin/env python3
"""Numbers for tests/algorithms/scores.rs: what happens to scores before they are advantages, by PyTorch in float64.

    python make_scores.py --out DIR [--seed N]

Writes scores.json; each entry has its formula. `running` is told the batches one after the other, and computes each batch's moments
from all scores so far, kept.
"""
import argparse, json, os
import torch

EPSILON = 1e-8


def remax(r):
    score, greedy = r(4, 3), r(4)
    return {"formula": "score - score of the prompt's greedy completion (Li et al. 2024, algorithm 1)", "score": score.tolist(),
            "greedy": greedy.tolist(), "advantages": (score - greedy[:, None]).tolist()}


def missing_eos(r):
    score, finished, penalty = r(8), torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool(), 1.7
    return {"formula": "score - penalty where a response did not end by itself (TRL's missing_eos_penalty)", "score": score.tolist(),
            "finished": finished.tolist(), "penalty": penalty, "penalised": torch.where(finished, score, score - penalty).tolist()}


def overlong(r):
    score, lengths = r(9), torch.tensor([1, 13, 14, 15, 17, 19, 20, 21, 40])
    limit, buffer, penalty = 20, 6, 0.8
    ramp = ((limit - buffer) - lengths.double()) / buffer
    punishment = torch.where(lengths <= limit - buffer, 0.0, torch.where(lengths <= limit, ramp, -1.0))
    return {"formula": "score + penalty * R_length: 0 up to L_max - L_cache, ((L_max - L_cache) - length)/L_cache up to L_max, then -1 "
                       "(Yu et al. 2025, eq. 13)",
            "score": score.tolist(), "lengths": lengths.tolist(), "limit": limit, "buffer": buffer, "penalty": penalty,
            "penalised": (score + penalty * punishment).tolist()}


def running(r):
    batches = [3 * r(n) + shift for n, shift in [(4, 2.0), (1, 9.0), (6, -5.0), (3, 0.5)]]
    J = {"formula": "(score - mean)/(std + 1e-8) over all scores so far, this batch's among them, biased std",
         "batches": [b.tolist() for b in batches], "mean": [], "std": [], "normalised": []}
    for n, batch in enumerate(batches):
        seen = torch.cat(batches[:n + 1])
        mean, std = seen.mean(), seen.std(correction=0)
        J["mean"].append(mean.item()); J["std"].append(std.item())
        J["normalised"].append(((batch - mean) / (std + EPSILON)).tolist())
    return J


def fixed(r):
    reference, score = 0.3 * r(10) + 4, r(5) + 4
    mean, std = reference.mean(), reference.std(correction=0)
    return {"formula": "(score - mean)/(std + 1e-8) over the reference's samples, biased std (Ziegler et al. 2019, section 2)",
            "reference": reference.tolist(), "score": score.tolist(), "normalised": ((score - mean) / (std + EPSILON)).tolist()}


def ensemble(r):
    scores, deviations = r(3, 7), 0.6
    mean, std = scores.mean(0), scores.std(0, correction=0)
    return {"formula": "over the models, the first dimension: mean; minimum (Coste et al. 2023, eq. 2); mean - k std, biased",
            "scores": scores.tolist(), "deviations": deviations, "mean": mean.tolist(), "minimum": scores.amin(0).tolist(),
            "mean_minus_deviation": (mean - deviations * std).tolist()}


if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("--out", required=True); a.add_argument("--seed", type=int, default=13); a = a.parse_args()
    g = torch.Generator().manual_seed(a.seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    J = {"torch": torch.__version__, "seed": a.seed} | {make.__name__: make(r) for make in [remax, missing_eos, overlong, running, fixed, ensemble]}
    json.dump(J, open(os.path.join(a.out, "scores.json"), "w"))
