#!/usr/bin/env python3
"""Writes preference.json: losses on pairs of answers, token by token, with their gradients, made with PyTorch in float64.

    pip install torch
    python make_preference.py --out DIR --seed 11

B pairs; answer 2i is the chosen one of pair i, answer 2i+1 the rejected one; `lengths` (2B,) are their tokens. `log_probs` has a list
of token log-probs for each answer under the policy, `reference` (2B,) the summed log-prob of each under the reference. Each case has
its constants, the mean `loss` over pairs, the gradient with respect to every token log-prob, and the implicit rewards (2B,).
`orpo` is ORPO's loss of the same sequences (TRL's ORPOTrainer), of which the last `answers` (2B,) tokens are the answers'.
"""
import argparse, json, os
import torch
from torch.nn.functional import logsigmoid

CASES = {
    "sigmoid": dict(beta=0.1), "cdpo": dict(beta=0.3, label_smoothing=0.15), "ipo": dict(beta=0.2),
    "simpo": dict(beta=2.0, gamma=1.4),
}

def case(name, tokens, reference, beta, label_smoothing=0.0, gamma=0.0):
    x = [t.clone().requires_grad_() for t in tokens]
    sums = torch.stack([t.sum() for t in x]); lengths = torch.tensor([float(len(t)) for t in x], dtype=torch.float64)
    ratios = sums - reference
    by_token = ratios / lengths
    h = (ratios[0::2] - ratios[1::2], by_token[0::2] - by_token[1::2])
    if name in ("sigmoid", "cdpo"):
        losses = -(1 - label_smoothing) * logsigmoid(beta * h[0]) - label_smoothing * logsigmoid(-beta * h[0]); rewards = beta * ratios
    elif name == "ipo":
        losses = (h[1] - 1 / (2 * beta)) ** 2; rewards = beta * ratios
    else:
        means = sums / lengths; rewards = beta * means
        losses = -logsigmoid(beta * (means[0::2] - means[1::2]) - gamma)
    loss = losses.mean(); loss.backward()
    return dict(beta=beta, label_smoothing=label_smoothing, gamma=gamma, loss=float(loss.detach()), rewards=rewards.detach().tolist(),
                gradient=[g.grad.tolist() for g in x])

def orpo(tokens, answers, beta):
    x = [t.clone().requires_grad_() for t in tokens]
    means = torch.stack([t[len(t) - n:].mean() for t, n in zip(x, answers)]); chosen, rejected = means[0::2], means[1::2]
    log_odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    nll = -torch.cat(x[0::2]).mean(); ratio = logsigmoid(log_odds)
    loss = nll - beta * ratio.mean(); loss.backward()
    zero = lambda t: torch.zeros_like(t) if t.grad is None else t.grad
    return dict(beta=beta, answers=answers, loss=float(loss.detach()), nll=float(nll.detach()), log_odds_ratio=float(ratio.detach().mean()),
                log_odds=float(log_odds.detach().mean()), rewards=(beta * means).detach().tolist(), gradient=[zero(t).tolist() for t in x])

if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("--out", required=True); a.add_argument("--seed", type=int, default=11); a = a.parse_args()
    g = torch.Generator().manual_seed(a.seed); lengths = [3, 5, 1, 2, 7, 4, 2, 2, 6, 1]
    tokens = [-torch.randn(n, generator=g, dtype=torch.float64).abs() * 1.5 for n in lengths]
    reference = torch.stack([t.sum() for t in tokens]) + torch.randn(len(lengths), generator=g, dtype=torch.float64)
    J = dict(lengths=lengths, log_probs=[t.tolist() for t in tokens], reference=reference.tolist(), torch=torch.__version__, seed=a.seed)
    J.update({name: case(name, tokens, reference, **constants) for name, constants in CASES.items()})
    J["orpo"] = orpo(tokens, [2, 5, 1, 2, 4, 4, 1, 2, 3, 1], 0.4)
    json.dump(J, open(os.path.join(a.out, "preference.json"), "w"))
