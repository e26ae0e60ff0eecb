"""Numbers for tests/algorithms/kl.rs: the estimators of the KL and their gradients, by autograd, far from the reference too.

    python make_kl.py --out DIR

Writes kl.json: for each type of float ("float64", "float32") the log-probs of policy and reference, and of each estimator

    d  = log_prob - reference
    k1 = d;  k2 = d^2 / 2;  k3 = exp(-d) - 1 + d        (Schulman 2020; TRL computes k3 as exp(-d) - (-d) - 1)

its value for each token and d(sum of values)/d(log_prob). Nothing is cut. k3 is written with expm1, which is exact for small d.
"""
import argparse, json, os
import torch

# log pi - log pi_ref: at the reference, on both sides of it, and far below, where pi is e^-60 of pi_ref.
DISTANCES = [0.0, 1e-6, -1e-6, 0.5, -0.5, 3.0, -2.3, -2.6, -2.7, 9.0, -5.0, -9.0, 21.0, -13.0, -20.0, -21.0, 35.0, -30.0, -45.0, -60.0]


def case(dtype):
    reference = torch.linspace(-0.25, -8.0, len(DISTANCES), dtype=torch.float64).to(dtype)
    log_probs = (reference + torch.tensor(DISTANCES, dtype=dtype)).requires_grad_()
    d = log_probs - reference
    out = {"log_probs": log_probs.tolist(), "reference": reference.tolist()}
    for name, kl in {"k1": d, "k2": 0.5 * d * d, "k3": torch.expm1(-d) + d}.items():
        out[name] = kl.tolist()
        out["grad_" + name] = torch.autograd.grad(kl.sum(), log_probs, retain_graph=True)[0].tolist()
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a = a.parse_args()
    types = {"float64": torch.float64, "float32": torch.float32}
    J = {"torch": torch.__version__} | {name: case(dtype) for name, dtype in types.items()}
    json.dump(J, open(os.path.join(a.out, "kl.json"), "w"))


if __name__ == "__main__":
    main()
