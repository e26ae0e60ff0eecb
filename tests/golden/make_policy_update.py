"""Numbers for tests/algorithms/policy_update.rs: the actor's loss of PPO with all its terms, by autograd in float64.

    python make_policy_update.py --out DIR [--seed N]

Writes policy_update.json. Token quantities of all sequences stand end to end; `lengths` says how many each sequence has.
Rows of logits are hidden @ head.T / temperature, renormalised over `kept` where sampling cut them (null: it did not).

    rho   = exp(log_prob - old)
    pg    = max(-A rho, -A clip(rho, 1 - lo, 1 + hi)), and min(that, -c A) where A < 0 (Ye et al. 2020)
    kl    = k1, k2 or k3 of d = log_prob - reference (Schulman 2020)
    H     = entropy of the distribution
    total = agg(pg) + kl_coef agg(k3 of d = whole_log_prob - whole_reference) - entropy_coef agg(H)

whole_log_prob is over the whole vocabulary, whatever was kept: the KL compares policies, which keep different sets.

agg: token = mean over all tokens; sequence = mean over sequences of the mean over each one's tokens; constant = mean over
sequences of (sum over each one's tokens / `longest`).
"""
import argparse, json, os
import torch


def cut_softmax(logits, kept):
    """log-softmax over the kept ids of each row; the others have probability 0."""
    mask = torch.zeros_like(logits)
    for row, ids in enumerate(kept):
        if ids is not None:
            mask[row] = -torch.inf
            mask[row, ids] = 0.0
    return torch.log_softmax(logits + mask, -1)


def entropy(log_p):
    finite = torch.where(log_p.isinf(), torch.zeros_like(log_p), log_p)
    return -(log_p.exp() * finite).sum(-1)


def aggregate(x, lengths, how, longest):
    rows = torch.split(x, lengths)
    if how == "token":
        return x.mean()
    if how == "sequence":
        return torch.stack([row.mean() for row in rows]).mean()
    return torch.stack([row.sum() / longest for row in rows]).mean()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--seed", type=int, default=11)
    a = a.parse_args()
    g = torch.Generator().manual_seed(a.seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    lengths, vocabulary, width, temperature, longest = [5, 1, 7, 3], 13, 6, 0.8, 8
    n = sum(lengths)
    hidden, head = r(n, width), r(vocabulary, width)
    tokens = torch.randint(vocabulary, (n,), generator=g)
    kept = [None] * n
    for row in range(0, n, 3):
        others = torch.randperm(vocabulary, generator=g)[:4].tolist()
        kept[row] = sorted(set(others + [int(tokens[row])]))
    start = cut_softmax(hidden @ head.T / temperature, kept).gather(1, tokens[:, None])[:, 0]
    old, reference, advantages = start + 0.7 * r(n), start + 0.5 * r(n), r(n)
    whole_start = torch.log_softmax(hidden @ head.T / temperature, -1).gather(1, tokens[:, None])[:, 0]
    whole_reference = whole_start + 0.5 * r(n)
    lo, hi, dual, kl_coef, entropy_coef = 0.2, 0.28, 1.2, 0.3, 0.05
    J = {"torch": torch.__version__, "seed": a.seed, "lengths": lengths, "temperature": temperature, "longest": longest,
         "hidden": hidden.tolist(), "head": head.tolist(), "tokens": tokens.tolist(), "kept": kept,
         "old": old.tolist(), "reference": reference.tolist(), "whole_reference": whole_reference.tolist(),
         "advantages": advantages.tolist(),
         "lo": lo, "hi": hi, "dual": dual, "kl_coef": kl_coef, "entropy_coef": entropy_coef, "aggregations": {}}
    for how in ["token", "sequence", "constant"]:
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        logits = h @ w.T / temperature
        log_p = cut_softmax(logits, kept)
        log_probs = log_p.gather(1, tokens[:, None])[:, 0]
        log_probs.retain_grad()
        agg = lambda x: aggregate(x, lengths, how, longest)
        grad = lambda loss: torch.autograd.grad(loss, log_probs, retain_graph=True)[0].tolist()
        rho = torch.exp(log_probs - old)
        unclipped, clipped = -advantages * rho, -advantages * rho.clamp(1 - lo, 1 + hi)
        single = torch.max(unclipped, clipped)
        bounded = torch.where(advantages < 0, torch.min(single, -dual * advantages), single)
        d = log_probs - reference
        kls = {"k1": d, "k2": 0.5 * d * d, "k3": torch.exp(-d) - 1 + d}
        policy, bonus = agg(bounded), agg(entropy(log_p))
        entry = {"policy": policy.item(), "grad_policy": grad(policy), "entropy": bonus.item(),
                 "clipped": int((clipped > unclipped).sum()), "dual_clipped": int((bounded < single).sum())}
        for name, kl in kls.items():
            entry[name], entry["grad_" + name] = agg(kl).item(), grad(agg(kl))
        d = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0] - whole_reference
        whole_kl = agg(torch.exp(-d) - 1 + d)
        total = policy + kl_coef * whole_kl - entropy_coef * bonus
        total.backward()
        entry.update(whole_kl=whole_kl.item(), total=total.item(), grad_hidden=h.grad.tolist(), grad_head=w.grad.tolist())
        J["aggregations"][how] = entry
    json.dump(J, open(os.path.join(a.out, "policy_update.json"), "w"))


if __name__ == "__main__":
    main()
