"""Whole trainings for tests/trainer.rs: final weights of tiny models, by the PyTorch trainer of trainer_torch.py.

    python make_trainer.py --out trainer        # made with torch 2.15.0, safetensors; seed 5, runs of seed 11

Writes into DIR the models that the stages start from (`policy/`, `scorer/`), their data, a configuration NAME.toml for each case,
the weights that it ends in (NAME.safetensors, rounded to float32) and some of the numbers that it logs on the way (NAME.json).
"""
import argparse, json, os
import torch
from safetensors.torch import save_file
from trainer_torch import CONTEXT, EOS, EPS, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, PAD, THETA, UNK, VOCAB
from trainer_torch import dpo, fresh, orpo, ppo, pretrain, reward, sft

SHARED = dict(lr_scheduler_type="constant", weight_decay=0.1, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-5, save_steps=0)
SUPERVISED = SHARED | dict(learning_rate=5e-3, batch_size=4, max_steps=8, max_grad_norm=0.5, max_length=16)
ONLINE = SHARED | dict(learning_rate=5e-3, batch_size=16, max_steps=3, num_mini_batches=2, num_ppo_epochs=2, max_grad_norm=0.3,
                       max_new_tokens=8, temperature=1.0, stop_token_ids=[5, 9, 14, 20, 27], kl_coef=0.1, kl_in="reward",
                       kl_estimator="k1", cliprange=0.05, loss_aggregation="token", missing_eos_penalty=0.5)
GROUP = ONLINE | dict(num_samples_per_prompt=4)

CASES = {
    "pretrain": ("pretrain", SHARED | dict(learning_rate=5e-3, batch_size=4, max_steps=8, max_grad_norm=0.5, context_length=9)),
    "sft": ("sft", SUPERVISED),
    "sft_cosine": ("sft", SUPERVISED | dict(lr_scheduler_type="cosine", min_lr_ratio=0.1, weight_decay=0.0, batch_size=5)),
    "reward": ("reward", SUPERVISED | dict(center_rewards_coefficient=0.05, lr_scheduler_type="linear", warmup_steps=2)),
    "dpo": ("dpo", SUPERVISED | dict(loss_type="sigmoid", beta=0.5, label_smoothing=0.1)),
    "ipo": ("dpo", SUPERVISED | dict(loss_type="ipo", beta=0.4)),
    "simpo": ("dpo", SUPERVISED | dict(loss_type="simpo", beta=2.0, simpo_gamma=0.8)),
    "orpo": ("orpo", SUPERVISED | dict(beta=0.7, micro_batch_tokens=48)),
    "gae": ("ppo", ONLINE | dict(advantage_estimator="gae", num_samples_per_prompt=2, gamma=0.97, lam=0.9, vf_coef=0.5,
                                 cliprange_value=0.05, critic_learning_rate=1e-2, whiten_rewards=True, dual_clip=1.05,
                                 cliprange_high=0.08, entropy_coef=0.02)),
    "gae_adaptive": ("ppo", ONLINE | dict(advantage_estimator="gae", num_samples_per_prompt=2, gamma=1.0, lam=0.95, vf_coef=0.1,
                                          cliprange_value=0.2, kl_controller="adaptive", kl_target=0.3, kl_horizon=100.0,
                                          score_normalization="running", score_clip=1.5, kl_estimator="k2", temperature=0.8,
                                          ptx_coef=0.5, ptx_length=9, ptx_batch_size=3, lr_scheduler_type="cosine")),
    "grpo": ("ppo", GROUP | dict(advantage_estimator="grpo", kl_in="loss", kl_estimator="k3", loss_aggregation="sequence")),
    "dr_grpo": ("ppo", GROUP | dict(advantage_estimator="dr_grpo", kl_in="loss", kl_estimator="k3", loss_aggregation="constant")),
    "rloo": ("ppo", GROUP | dict(advantage_estimator="rloo", loss_aggregation="constant", overlong_buffer=4, overlong_penalty=0.5)),
    "rloo_cut": ("ppo", GROUP | dict(advantage_estimator="rloo", top_k=6, temperature=1.2, whiten_advantages=True)),
    "reinforce_plus_plus": ("ppo", GROUP | dict(advantage_estimator="reinforce_plus_plus", gamma=0.9)),
    "remax": ("ppo", GROUP | dict(advantage_estimator="remax", loss_aggregation="constant", score_normalization="running")),
}

# Keys that are left to the engine's defaults, which must be the method's.
PLACE = ("kl_in", "kl_estimator")
DEFAULTS = {"grpo": PLACE} | dict.fromkeys(["gae", "dr_grpo", "rloo", "reinforce_plus_plus", "remax"], (*PLACE, "loss_aggregation"))


class Case:
    def __init__(self, keys, data, policy, scorer):
        self.keys, self.seed, self.policy, self.scorer = keys, 11, policy, scorer
        self.prompts, self.examples, self.pairs, self.texts = data


def data(generator):
    """Tokens of prompts, examples, pairs with margins, and texts, of unequal lengths."""
    def words(low, high):
        n = torch.randint(low, high + 1, (1,), generator=generator).item()
        return torch.randint(3, VOCAB, (n,), generator=generator).tolist()
    prompts = [words(2, 6) for _ in range(8)]
    examples = [(words(1, 5), words(1, 6)) for _ in range(10)]
    pairs = [(words(1, 5), words(1, 6), words(1, 6), i % 3 * 0.25) for i in range(10)]
    texts = [words(3, 12) for _ in range(12)]
    return prompts, examples, pairs, texts


def text(ids):
    return " ".join(f"w{i}" for i in ids)


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def write_lines(path, records):
    with open(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def write_model(folder, weights, architecture):
    os.makedirs(folder, exist_ok=True)
    config = dict(architectures=[architecture], model_type="llama", hidden_size=HIDDEN, intermediate_size=INNER,
                  num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD,
                  vocab_size=VOCAB, max_position_embeddings=CONTEXT, rms_norm_eps=EPS, rope_theta=THETA,
                  tie_word_embeddings=True, hidden_act="silu", bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD,
                  torch_dtype="float32")
    if "SequenceClassification" in architecture:
        config |= dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    write_json(os.path.join(folder, "config.json"), config)
    save_file({name: value.float() for name, value in weights.items()}, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    names = {PAD: "<pad>", EOS: "<eos>", UNK: "<unk>"}
    special = [dict(id=i, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
               for i, name in names.items()]
    vocabulary = {names.get(i, f"w{i}"): i for i in range(VOCAB)}
    write_json(os.path.join(folder, "tokenizer.json"), dict(
        version="1.0", truncation=None, padding=None, added_tokens=special, normalizer=None,
        pre_tokenizer=dict(type="WhitespaceSplit"), post_processor=None, decoder=None,
        model=dict(type="WordLevel", vocab=vocabulary, unk_token="<unk>")))
    write_json(os.path.join(folder, "tokenizer_config.json"), dict(
        tokenizer_class="PreTrainedTokenizerFast", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"))


def toml(name, stage, keys):
    files = {"pretrain": dict(data="texts.jsonl"),
             "sft": {"from": "policy", "data": "examples.jsonl"},
             "dpo": {"from": "policy", "data": "pairs.jsonl"},
             "orpo": {"from": "policy", "data": "pairs.jsonl"},
             "reward": {"from": "scorer", "data": "pairs.jsonl"},
             "ppo": {"from": "policy", "reward_model": "scorer", "prompts": "prompts.jsonl"}}[stage]
    if "ptx_coef" in keys:
        files["ptx_data"] = "texts.jsonl"
    typed = {key: value for key, value in keys.items() if key not in DEFAULTS.get(name, ())}
    lines = ["[run]", 'name = "trial"', "seed = 11", ""]
    lines += ["[model]", 'from = "policy"', ""] if stage == "pretrain" else []
    lines += [f"[{stage}]"] + [f"{key} = {json.dumps(value)}" for key, value in (files | typed).items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    out = arguments.out
    os.makedirs(out, exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    policy, scorer = fresh(generator, score=False), fresh(generator, score=True)
    write_model(os.path.join(out, "policy"), policy, "LlamaForCausalLM")
    write_model(os.path.join(out, "scorer"), scorer, "LlamaForSequenceClassification")
    made = data(generator)
    prompts, examples, pairs, texts = made
    write_lines(os.path.join(out, "prompts.jsonl"), [dict(prompt=text(p)) for p in prompts])
    write_lines(os.path.join(out, "examples.jsonl"), [dict(prompt=text(p), completion=" " + text(c)) for p, c in examples])
    write_lines(os.path.join(out, "pairs.jsonl"), [dict(prompt=text(p), chosen=" " + text(c), rejected=" " + text(r), margin=m)
                                                   for p, c, r, m in pairs])
    write_lines(os.path.join(out, "texts.jsonl"), [dict(text=text(t)) for t in texts])
    stages = dict(pretrain=pretrain, sft=sft, reward=reward, dpo=dpo, orpo=orpo, ppo=ppo)
    for name, (stage, keys) in CASES.items():
        if arguments.only and name not in arguments.only:
            continue
        weights, log = stages[stage](Case(keys, made, policy, scorer))
        with open(os.path.join(out, name + ".toml"), "w") as file:
            file.write(toml(name, stage, keys))
        save_file({n: v.float() for n, v in weights.items()}, os.path.join(out, name + ".safetensors"))
        write_json(os.path.join(out, name + ".json"), dict(stage=stage, metrics=log))
        start = scorer if stage == "reward" else policy
        moved = max((weights[n] - start[n]).abs().max().item() for n in weights)
        print(f"{name:20} moved {moved:.3f}", {k: [round(x, 3) for x in v] for k, v in log.items()})
    versions = dict(torch=torch.__version__)
    write_json(os.path.join(out, "versions.json"), versions)


if __name__ == "__main__":
    main()
