#!/usr/bin/env python3
"""Writes trl_defaults.json: the defaults of TRL's configuration classes, and what its loss formulas give with them.

    pip install "trl==1.12.0" torch
    python make_trl_defaults.py --out DIR        # DIR holds algorithms.json

`sft`, `reward`, `ppo`, `dpo`, `orpo`, `grpo`, `rloo`: every field that the class itself declares, and those of transformers' TrainingArguments that shape
training, with their defaults; `cpo` has CPOConfig's fields of SimPO. `on_algorithms`: PPO's and DPO's losses on the inputs of
algorithms.json (made by make_fixtures.py) with the constants of PPOConfig() and DPOConfig(), TRL's own masked mean and whitening;
values past the end of a response are 0.
"""
import argparse, dataclasses, json, os
import torch, trl
from torch.nn.functional import logsigmoid
from trl import DPOConfig, GRPOConfig, RewardConfig, RLOOConfig, SFTConfig
from trl.experimental.cpo import CPOConfig
from trl.experimental.orpo import ORPOConfig
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo.ppo_trainer import masked_mean, masked_whiten

SHARED = ["learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
          "per_device_train_batch_size", "num_train_epochs", "max_steps", "save_steps", "eval_steps", "logging_steps",
          "gradient_checkpointing", "dataloader_drop_last"]
DEPRECATED = {"pad_token", "use_transformers_paged", "vllm_importance_sampling_cap"}

def default(field):
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return getattr(value, "value", value)

def defaults(config, names=None):
    fields = {f.name: f for f in dataclasses.fields(config)}
    names = names or SHARED + [n for n in config.__annotations__ if n not in SHARED and n not in DEPRECATED]
    return {n: default(fields[n]) for n in names if n in fields}

def on_algorithms(A):
    c = {f.name: default(f) for f in dataclasses.fields(PPOConfig)}; t = lambda k: torch.tensor(A[k], dtype=torch.float64)
    assert c["kl_estimator"] == "k1" and not c["whiten_rewards"]
    m = t("valid").bool(); lens = m.sum(1).tolist(); old, new, ref, v_old, v_new, score = map(t, ["logp_old", "logp_new", "logp_ref", "value_old", "value_new", "score"])
    rewards = torch.where(m, -c["kl_coef"] * (old - ref), 0.0)
    for b, n in enumerate(lens): rewards[b, n - 1] += score[b]
    advantages = torch.zeros_like(rewards)
    for b, n in enumerate(lens):
        carried = 0.0
        for i in reversed(range(n)):
            after = v_old[b, i + 1] if i + 1 < n else 0.0
            carried = rewards[b, i] + c["gamma"] * after - v_old[b, i] + c["gamma"] * c["lam"] * carried; advantages[b, i] = carried
    returns = advantages + v_old
    whitened = masked_whiten(advantages, m)
    ratio = torch.exp(new - old); lo, hi = 1 - c["cliprange"], 1 + c["cliprange"]
    policy = masked_mean(torch.maximum(-whitened * ratio, -whitened * ratio.clamp(lo, hi)), m)
    clipped = torch.clamp(v_new, v_old - c["cliprange_value"], v_old + c["cliprange_value"])
    value = 0.5 * masked_mean(torch.maximum((v_new - returns) ** 2, (clipped - returns) ** 2), m)
    d = {f.name: default(f) for f in dataclasses.fields(DPOConfig)}; D = {k: torch.tensor(v, dtype=torch.float64) for k, v in A["dpo"].items() if isinstance(v, list)}
    assert d["loss_type"] == ["sigmoid"]
    h = (D["policy_chosen"] - D["ref_chosen"]) - (D["policy_rejected"] - D["ref_rejected"])
    return {"rewards": rewards.tolist(), "advantages": torch.where(m, whitened, 0.0).tolist(), "policy_loss": float(policy), "value_loss": float(value),
            "loss": float(policy + c["vf_coef"] * value), "dpo_loss": float(-logsigmoid(d["beta"] * h).mean())}

if __name__ == "__main__":
    a = argparse.ArgumentParser(); a.add_argument("--out", required=True); a = a.parse_args()
    J = {"trl": trl.__version__, "sft": defaults(SFTConfig), "reward": defaults(RewardConfig), "ppo": defaults(PPOConfig), "dpo": defaults(DPOConfig),
         "orpo": defaults(ORPOConfig), "grpo": defaults(GRPOConfig), "rloo": defaults(RLOOConfig),
         "cpo": defaults(CPOConfig, ["beta", "simpo_gamma"]), "on_algorithms": on_algorithms(json.load(open(os.path.join(a.out, "algorithms.json"))))}
    json.dump(J, open(os.path.join(a.out, "trl_defaults.json"), "w"), default=str)
