"""A trainer of tiny models in PyTorch and float64, written from papers and formulas alone, for make_trainer.py.

Nothing here is taken from the engine or needs its output. Its own are:
- the decoder (Llama: Touvron et al. 2023; RoPE: Su et al. 2021; GQA: Ainslie et al. 2023), one sequence at a time;
- AdamW with its clip (torch.optim, torch.nn.utils), learning rates (transformers' schedules);
- the losses, estimators and controllers, each with its source beside it;
- the order of records and the sampled tokens: Philox4x32-10 (Salmon et al. 2011) under the keys of kernels/src/random.rs, Fisher-Yates
  with rand 0.9's draws, and the inverse of the cumulative distribution. A token would differ only if a draw fell within rounding of a border.
"""
import itertools
import math
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

# ---------------------------------------------------------------- keyed randomness

INIT, SHUFFLE, MIXTURE, SAMPLE, EVALUATION, PPO_SHUFFLE, SPLIT, PTX = 1, 2, 3, 4, 6, 7, 8, 9
M32 = 0xFFFFFFFF


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & M32, (p0 >> 32) ^ c[3] ^ k[1], p0 & M32]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


class Key:
    def __init__(self, words):
        self.key = words

    @staticmethod
    def of(seed, purpose):
        return Key([seed & M32, seed >> 32]).child(purpose, 0)

    def entry(self, a, b):
        return philox([a & M32, a >> 32, b & M32, b >> 32], self.key)

    def child(self, a, b):
        return Key(self.entry(a, b)[2:])

    def uniform(self, a, b):
        low, high = self.entry(a, b)[:2]
        return ((high << 32 | low) >> 11) / 2**53

    def words(self, a, b):
        """The stream of an entry: its block under this key, then under the keys that follow."""
        for k in itertools.count(self.key[1] << 32 | self.key[0]):
            yield from Key([k & M32, k >> 32 & M32]).entry(a, b)

    def permutation(self, a, n):
        """Fisher-Yates from the front; one draw below m (m + 1) ... < 2^32 serves as many steps as it has factors."""
        order, words, chunk, left = list(range(n)), self.words(a, 0), 0, 1
        for place in range(n):
            m = place + 1
            if left == 0:
                bound = m
                while bound * (m + left + 1) <= M32:
                    left += 1
                    bound *= m + left
                chunk, left = below(words, bound), left + 1
            left -= 1
            chunk, other = divmod(chunk, m) if left else (0, chunk)
            order[place], order[other] = order[other], order[place]
        return order


def below(words, bound):
    """An integer below `bound` from one 32-bit word, and a second one where the first would favour some (Canon 2021)."""
    high, low = divmod(next(words) * bound, 1 << 32)
    if low > (1 << 32) - bound:
        high += low + (next(words) * bound >> 32) > M32
    return high


class Order:
    """An endless walk over n records, each epoch in an order of its own."""

    def __init__(self, n, seed, purpose):
        self.n, self.key = n, Key.of(seed, purpose)

    def __getitem__(self, place):
        return self.key.permutation(place // self.n, self.n)[place % self.n]

    def batches(self, size):
        """Batches of `size`; an epoch ends with a short one where it does not divide."""
        epoch = 0
        while True:
            order = self.key.permutation(epoch, self.n)
            for start in range(0, self.n, size):
                yield order[start:start + size]
            epoch += 1


# ---------------------------------------------------------------- the model

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 16, 24, 2, 2, 1, 32, 32
HEAD = HIDDEN // HEADS
EPS, THETA = 1e-5, 10000.0
PAD, EOS, UNK = 0, 1, 2


def fresh(generator, score):
    """Weights large enough that the model has opinions; rounded to float32, as the files hold them."""
    def normal(*shape, std):
        return (torch.randn(*shape, generator=generator) * std).float().double()
    w = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN, std=0.5)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"] = 1 + normal(HIDDEN, std=0.1)
        w[p + "self_attn.q_proj.weight"] = normal(HEADS * HEAD, HIDDEN, std=0.3)
        w[p + "self_attn.k_proj.weight"] = normal(KV_HEADS * HEAD, HIDDEN, std=0.3)
        w[p + "self_attn.v_proj.weight"] = normal(KV_HEADS * HEAD, HIDDEN, std=0.3)
        w[p + "self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD, std=0.3)
        w[p + "post_attention_layernorm.weight"] = 1 + normal(HIDDEN, std=0.1)
        w[p + "mlp.gate_proj.weight"] = normal(INNER, HIDDEN, std=0.3)
        w[p + "mlp.up_proj.weight"] = normal(INNER, HIDDEN, std=0.3)
        w[p + "mlp.down_proj.weight"] = normal(HIDDEN, INNER, std=0.3)
    w["model.norm.weight"] = 1 + normal(HIDDEN, std=0.1)
    if score:
        w["score.weight"] = normal(1, HIDDEN, std=0.3)
    return {name: value.float().double() for name, value in w.items()}


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def rope(x):
    """[heads, T, HEAD], first half of a head with its second."""
    positions = torch.arange(x.shape[1]).double()
    angles = torch.outer(positions, THETA ** (-torch.arange(0, HEAD, 2).double() / HEAD))
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :HEAD // 2], x[..., HEAD // 2:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def hidden(w, ids):
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    t = len(ids)
    for i in range(LAYERS):
        g = lambda name: w[f"model.layers.{i}.{name}.weight"]
        h = norm(x, g("input_layernorm"))
        heads = lambda y, n: y.view(t, n, HEAD).transpose(0, 1)
        q = rope(heads(h @ g("self_attn.q_proj").T, HEADS))
        k = rope(heads(h @ g("self_attn.k_proj").T, KV_HEADS)).repeat_interleave(HEADS // KV_HEADS, 0)
        v = heads(h @ g("self_attn.v_proj").T, KV_HEADS).repeat_interleave(HEADS // KV_HEADS, 0)
        seen = torch.ones(t, t).tril().bool()
        a = (q @ k.transpose(1, 2) / math.sqrt(HEAD)).masked_fill(~seen, -torch.inf).softmax(-1)
        x = x + (a @ v).transpose(0, 1).reshape(t, HIDDEN) @ g("self_attn.o_proj").T
        h = norm(x, g("post_attention_layernorm"))
        x = x + (F.silu(h @ g("mlp.gate_proj").T) * (h @ g("mlp.up_proj").T)) @ g("mlp.down_proj").T
    return norm(x, w["model.norm.weight"])


def logits(w, ids):
    return hidden(w, ids) @ w["model.embed_tokens.weight"].T


def log_probs(w, ids, start, temperature=1.0):
    """log p of ids[start:], each given those before it; and the whole rows."""
    rows = torch.log_softmax(logits(w, ids[:-1])[start - 1:] / temperature, -1)
    return rows.gather(1, torch.tensor(ids[start:])[:, None])[:, 0], rows


def score(w, ids):
    return (hidden(w, ids) @ w["score.weight"].T)[-1, 0]


# ---------------------------------------------------------------- training

class Trainer:
    """AdamW (Loshchilov and Hutter 2019) on copies of some weights: matrices decay, the gradient is clipped to a global norm."""

    def __init__(self, weights, keys, rate):
        self.w = {name: value.clone().requires_grad_() for name, value in weights.items()}
        matrices = [v for v in self.w.values() if v.dim() > 1]
        vectors = [v for v in self.w.values() if v.dim() == 1]
        groups = [dict(params=matrices, weight_decay=keys["weight_decay"]), dict(params=vectors, weight_decay=0.0)]
        betas = (keys["adam_beta1"], keys["adam_beta2"])
        self.adam = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=keys["adam_epsilon"])
        self.limit = keys["max_grad_norm"]

    def step(self, loss, rate):
        self.adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.w.values(), self.limit)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        return norm.item()

    def frozen(self):
        return {name: value.detach().clone() for name, value in self.w.items()}


def rate_at(keys, step, steps, peak):
    """transformers' schedules: `step` from 0; without warm-up the first step has the peak. The warm-up is k/(w + 1) for k = 1..w."""
    kind, warmup = keys["lr_scheduler_type"], keys.get("warmup_steps", 0)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if kind == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    left = 1 - progress if kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    floor = keys.get("min_lr_ratio", 0.0)
    return peak * (floor + (1 - floor) * left)


def supervised(weights, keys, seed, records, loss_of):
    """Steps on batches; `loss_of` gives a batch's mean loss, and other means of the batch by the names that they are logged under.
    Returns weights and the log."""
    trainer = Trainer(weights, keys, keys["learning_rate"])
    batches = Order(len(records), seed, SHUFFLE).batches(keys["batch_size"])
    log = {}
    for step in range(keys["max_steps"]):
        rate = rate_at(keys, step, keys["max_steps"], keys["learning_rate"])
        loss, means = loss_of(trainer.w, [records[i] for i in next(batches)])
        norm = trainer.step(loss, rate)
        logged = {"train/loss": loss.item(), "train/grad_norm": norm, "train/learning_rate": rate}
        for name, value in (logged | {name: mean.item() for name, mean in means.items()}).items():
            log.setdefault(name, []).append(value)
    return trainer.frozen(), log


def next_token(w, rows):
    """Cross-entropy, a mean over all tokens of the batch that count: those from `start` on of each row."""
    found = [log_probs(w, ids, start)[0] for ids, start in rows]
    return -torch.cat(found).mean()


def language(w, rows):
    return next_token(w, rows), {}


def pretrain(case):
    text = [t for document in case.texts for t in document + [EOS]]
    length = case.keys["context_length"]
    rows = [(text[i:i + length + 1], 1) for i in range(0, len(text) - length, length)]
    return supervised(case.policy, case.keys, case.seed, rows, language)


def sft(case):
    rows = [(prompt + answer + [EOS], len(prompt)) for prompt, answer in case.examples]
    return supervised(case.policy, case.keys, case.seed, rows, language)


def reward(case):
    """Bradley-Terry with margins (Touvron et al. 2023, eq. 2), centred (Eisenstein et al. 2023, eq. 2)."""
    def loss(w, pairs):
        total = 0.0
        for prompt, chosen, rejected, margin in pairs:
            c, r = score(w, prompt + chosen + [EOS]), score(w, prompt + rejected + [EOS])
            total = total - F.logsigmoid(c - r - margin) + case.keys["center_rewards_coefficient"] * (c + r) ** 2
        return total / len(pairs), {}
    return supervised(case.scorer, case.keys, case.seed, case.pairs, loss)


def answer_log_probs(w, pair):
    """log p of the tokens of the chosen and of the rejected answer, given the prompt."""
    prompt, chosen, rejected, _ = pair
    return [log_probs(w, prompt + answer + [EOS], len(prompt))[0] for answer in (chosen, rejected)]


def dpo(case):
    """DPO (Rafailov et al. 2023, eq. 7), cDPO (Mitchell 2023), IPO (Azar et al. 2023, eq. 17, on means over tokens as TRL has it),
    SimPO (Meng et al. 2024, eq. 6)."""
    keys, kind = case.keys, case.keys["loss_type"]

    def loss(w, pairs):
        total = 0.0
        for pair in pairs:
            own = answer_log_probs(w, pair)
            with torch.no_grad():
                reference = answer_log_probs(case.policy, pair)
            beta = keys["beta"]
            if kind == "sigmoid":
                z = beta * ((own[0].sum() - reference[0].sum()) - (own[1].sum() - reference[1].sum()))
                e = keys.get("label_smoothing", 0.0)
                total = total - (1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)
            elif kind == "ipo":
                h = (own[0] - reference[0]).mean() - (own[1] - reference[1]).mean()
                total = total + (h - 1 / (2 * beta)) ** 2
            else:
                z = beta * (own[0].mean() - own[1].mean()) - keys["simpo_gamma"]
                total = total - F.logsigmoid(z)
        return total / len(pairs), {}
    return supervised(case.policy, keys, case.seed, case.pairs, loss)


def orpo(case):
    """ORPO (Hong et al. 2024): L_SFT + lambda L_OR (eq. 6), L_OR = -log sigmoid(log(odds(chosen) / odds(rejected))) (eq. 7), with
    odds = P / (1 - P) (eq. 4) of P = exp(mean log p of an answer's tokens) (eq. 3). L_SFT is the cross-entropy of the batch's chosen
    sequences, prompts included, and L_OR a mean over its pairs, as the authors and TRL have it; TRL's beta is lambda."""
    def loss(w, pairs):
        p = torch.stack([torch.stack([x.mean() for x in answer_log_probs(w, pair)]).exp() for pair in pairs])  # [pairs, 2]
        odds = p / (1 - p)
        preferred = torch.sigmoid(torch.log(odds[:, 0] / odds[:, 1])).log()
        text = next_token(w, [(prompt + chosen + [EOS], 1) for prompt, chosen, _, _ in pairs])
        rewards = case.keys["beta"] * p.log()
        return text - case.keys["beta"] * preferred.mean(), {
            "nll_loss": text, "log_odds_ratio": preferred.mean(), "log_odds_chosen": (odds[:, 0].log() - odds[:, 1].log()).mean(),
            "logps/chosen": p[:, 0].log().mean(), "logps/rejected": p[:, 1].log().mean(),
            "rewards/chosen": rewards[:, 0].mean(), "rewards/rejected": rewards[:, 1].mean(),
            "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(), "rewards/accuracies": (p[:, 0] > p[:, 1]).double().mean()}
    return supervised(case.policy, case.keys, case.seed, case.pairs, loss)


# ---------------------------------------------------------------- PPO

def kept(row, top_k):
    """Ids that sampling may draw: the k most probable and those equal to the last of them."""
    if top_k == 0:
        return torch.arange(VOCAB)
    return (row >= row.topk(top_k).values[-1]).nonzero()[:, 0]


def respond(w, prompt, keys, draw):
    """Tokens up to a stop token, and whether there was one; `draw(place, log-probs)` gives the next token."""
    stops, ids = {EOS, *keys["stop_token_ids"]}, list(prompt)
    for place in range(keys["max_new_tokens"]):
        ids.append(draw(place, logits(w, ids)[-1]))
        if ids[-1] in stops:
            return ids, True
    return ids, False


def sample(w, prompt, keys, key, number):
    def draw(place, row):
        allowed = kept(row, keys.get("top_k", 0))
        weights = (row[allowed] / keys["temperature"]).softmax(-1).cumsum(-1)
        target = key.uniform(number, place) * weights[-1].item()
        return allowed[(weights > target).nonzero()[0, 0]].item()
    return respond(w, prompt, keys, draw)


def greedy(w, prompt, keys):
    return respond(w, prompt, keys, lambda _, row: row.argmax().item())


def whiten(x, keep_mean=False):
    out = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-8)
    return out + x.mean() if keep_mean else out


class Response:
    """A sequence with what the policy that sampled it and the reference say of its tokens."""

    def __init__(self, ids, start, finished, keys):
        self.ids, self.start, self.finished, self.keys = ids, start, finished, keys

    def __len__(self):
        return len(self.ids) - self.start

    def read(self, w):
        """log p of each token in the distribution that it was drawn from, in the whole one, and the entropy of the former."""
        t = self.keys["temperature"]
        whole, rows = log_probs(w, self.ids, self.start, t)
        if self.keys.get("top_k", 0) == 0:
            return whole, whole, -(rows.exp() * rows).sum(-1)
        cut, entropy = [], []
        for token, row, allowed in zip(self.ids[self.start:], rows, self.allowed):
            part = torch.log_softmax(row[allowed], -1)
            cut.append(part[(allowed == token).nonzero()[0, 0]])
            entropy.append(-(part.exp() * part).sum())
        return torch.stack(cut), whole, torch.stack(entropy)

    def note_allowed(self, w):
        """The ids that could have been drawn at each place."""
        rows = logits(w, self.ids[:-1])[self.start - 1:]
        self.allowed = [kept(row, self.keys.get("top_k", 0)) for row in rows]


class Scale:
    """Scores by mean and deviation of all so far."""

    def __init__(self, how):
        self.how, self.seen = how, []

    def observe(self, raw):
        self.seen += raw

    def shape(self, raw, responses, keys):
        """Normalised, clipped, then penalised where a response did not end (Huang et al. 2024), or is overlong (Yu et al. 2025, eq. 13)."""
        s = torch.tensor(raw)
        if self.how == "running":
            seen = torch.tensor(self.seen)
            s = (s - seen.mean()) / (seen.std(unbiased=False) + 1e-8)
        if "score_clip" in keys:
            s = s.clamp(-keys["score_clip"], keys["score_clip"])
        missing = torch.tensor([0.0 if r.finished else 1.0 for r in responses])
        s = s - keys.get("missing_eos_penalty", 0.0) * missing
        buffer = keys.get("overlong_buffer", 0)
        if buffer:
            over = torch.tensor([max(0, len(r) - (keys["max_new_tokens"] - buffer)) / buffer for r in responses])
            s = s - keys.get("overlong_penalty", 1.0) * over
        return s


def per_token(kind, d):
    """Schulman 2020, with d = log pi - log pi_ref."""
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[kind]


def gae(rewards, values, keys):
    """Schulman et al. 2016, eq. 16; nothing past the end."""
    advantages, following, value_after = [], 0.0, 0.0
    for r, v in zip(reversed(rewards.tolist()), reversed(values.tolist())):
        following = r + keys["gamma"] * value_after - v + keys["gamma"] * keys["lam"] * following
        value_after = v
        advantages.insert(0, following)
    return torch.tensor(advantages)


def advantages_of(case, responses, rewards, values, baselines):
    """Token rewards -> advantages of all tokens, and the returns of a critic."""
    keys, kind = case.keys, case.keys["advantage_estimator"]
    lengths = [len(r) for r in responses]
    if keys.get("whiten_rewards"):
        rewards = torch.split(whiten(torch.cat(rewards), keep_mean=True), lengths)
    if kind == "gae":
        a = [gae(r, v, keys) for r, v in zip(rewards, values)]
        return whiten(torch.cat(a)), [x + v for x, v in zip(a, values)]
    if kind == "reinforce_plus_plus":  # Hu 2025
        to_go = []
        for r in rewards:
            g = r.clone()
            for t in range(len(g) - 2, -1, -1):
                g[t] = r[t] + keys["gamma"] * g[t + 1]
            to_go.append(g)
        return whiten(torch.cat(to_go)), None
    totals = torch.stack([r.sum() for r in rewards]).view(-1, keys["num_samples_per_prompt"])
    n = totals.shape[1]
    if kind == "grpo":  # Shao et al. 2024, 4.1.2
        a = (totals - totals.mean(1, keepdim=True)) / (totals.std(1, keepdim=True) + 1e-6)
    elif kind == "dr_grpo":  # Liu et al. 2025, 3.2
        a = totals - totals.mean(1, keepdim=True)
    elif kind == "rloo":  # Ahmadian et al. 2024
        a = totals - (totals.sum(1, keepdim=True) - totals) / (n - 1)
    else:  # remax: Li et al. 2024
        a = totals - baselines[:, None]
    a = a.flatten()
    if keys.get("whiten_advantages"):
        a = torch.cat([x.expand(n) for x, n in zip(a, lengths)])
        return whiten(a), None
    return torch.cat([x.expand(n) for x, n in zip(a, lengths)]), None


def aggregate(parts, how, longest):
    """Over a minibatch: all tokens alike; each sequence alike; or sums over the longest possible response (Liu et al. 2025), which
    leaves a response one action, as Ahmadian et al. 2024 and Li et al. 2024 have it."""
    if how == "token":
        return torch.cat(parts).mean()
    if how == "sequence":
        return torch.stack([p.mean() for p in parts]).mean()
    return torch.stack([p.sum() / longest for p in parts]).mean()


def policy_term(new, old, advantages, keys):
    """Schulman et al. 2017, eq. 7; an upper range of its own (Yu et al. 2025); the dual clip (Ye et al. 2020)."""
    ratio = (new - old).exp()
    low, high = keys["cliprange"], keys.get("cliprange_high", keys["cliprange"])
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    clipped = (-advantages * ratio.clamp(1 - low, 1 + high) > -advantages * ratio).double()
    if "dual_clip" in keys:
        loss = torch.where(advantages < 0, torch.minimum(loss, -keys["dual_clip"] * advantages), loss)
    return loss, clipped


class Ptx:
    """Ouyang et al. 2022, eq. 2: rows of text beside each step of the policy."""

    def __init__(self, case):
        text = [t for document in case.texts for t in document + [EOS]]
        length = case.keys["ptx_length"]
        self.rows = [(text[i:i + length + 1], 1) for i in range(0, len(text) - length, length)]
        self.count = case.keys["ptx_batch_size"]
        self.order, self.place = Order(len(self.rows), case.seed, PTX), 0

    def next(self):
        # A batch crosses no epoch's end.
        left = len(self.rows) - self.place % len(self.rows)
        if left < self.count:
            self.place += left
        rows = [self.rows[self.order[self.place + i]] for i in range(self.count)]
        self.place += self.count
        return rows


def ppo(case):
    keys, reference = case.keys, case.policy
    critic_rate = keys.get("critic_learning_rate", keys["learning_rate"])
    actor = Trainer(case.policy, keys, keys["learning_rate"])
    critic = Trainer(case.scorer, keys, critic_rate) if keys["advantage_estimator"] == "gae" else None
    order, place = Order(len(case.prompts), case.seed, SHUFFLE), 0
    samples = keys["num_samples_per_prompt"]
    prompts_wanted = keys["batch_size"] // samples
    scale, coef = Scale(keys.get("score_normalization", "none")), keys["kl_coef"]
    ptx = Ptx(case) if "ptx_coef" in keys else None
    names = ("objective/kl", "objective/kl_coef", "objective/scores", "loss/policy", "policy/clip_fraction", "loss/value",
             "value/clip_fraction", "loss/kl", "loss/entropy", "loss/ptx", "value/explained_variance")
    log = {name: [] for name in names}
    for iteration in range(1, keys["max_steps"] + 1):
        # Roll out and score.
        w, responses, greedy_scores = actor.frozen(), [], []
        raw, baseline_responses = [], []
        with torch.no_grad():
            for _ in range(prompts_wanted):
                prompt = case.prompts[order[place]]
                key = Key.of(case.seed, SAMPLE).child(iteration, place)
                for number in range(samples):
                    ids, finished = sample(w, prompt, keys, key, number)
                    responses.append(Response(ids, len(prompt), finished, keys))
                if keys["advantage_estimator"] == "remax":
                    ids, finished = greedy(w, prompt, keys)
                    baseline_responses.append(Response(ids, len(prompt), finished, keys))
                place += 1
            for r in responses:
                r.note_allowed(w)
                r.old, r.whole, _ = r.read(w)
                r.reference = r.read(reference)[1]
                if critic:
                    r.values = (hidden(critic.w, r.ids[:-1]) @ critic.w["score.weight"].T)[r.start - 1:, 0]
                raw.append(score(case.scorer, r.ids).item())
            greedy_scores = [score(case.scorer, r.ids).item() for r in baseline_responses]
        scale.observe(raw)
        scores = scale.shape(raw, responses, keys)
        baselines = scale.shape(greedy_scores, baseline_responses, keys) if greedy_scores else None
        # KL, rewards, advantages.
        kl = torch.stack([(r.whole - r.reference).sum() for r in responses]).mean().item()
        in_loss = keys["kl_in"] == "loss"
        rewards = []
        for r, s in zip(responses, scores):
            penalty = per_token(keys["kl_estimator"], r.whole - r.reference)
            reward_ = torch.zeros(len(r)) if in_loss else -coef * penalty
            reward_[-1] += s
            rewards.append(reward_)
        advantages, returns = advantages_of(case, responses, rewards, [getattr(r, "values", None) for r in responses], baselines)
        for r, a in zip(responses, torch.split(advantages, [len(r) for r in responses])):
            r.advantages = a
        for r, target in zip(responses, returns or []):
            r.returns = target
        used = coef
        if keys.get("kl_controller") == "adaptive":  # Ziegler et al. 2019, 2.2
            error = max(-0.2, min(0.2, kl / keys["kl_target"] - 1))
            coef *= 1 + error * len(responses) / keys["kl_horizon"]
        # Epochs.
        found = {name: [] for name in names[3:]}
        rates = [rate_at(keys, iteration - 1, keys["max_steps"], peak) for peak in (keys["learning_rate"], critic_rate)]
        for epoch in range(keys["num_ppo_epochs"]):
            shuffled = Key.of(case.seed, PPO_SHUFFLE).permutation(iteration * keys["num_ppo_epochs"] + epoch, len(responses))
            size = len(responses) // keys["num_mini_batches"]
            for start in range(0, len(responses), size):
                batch = [responses[i] for i in shuffled[start:start + size]]
                how, longest = keys["loss_aggregation"], keys["max_new_tokens"]
                read = [r.read(actor.w) for r in batch]
                terms = [policy_term(new, r.old, r.advantages, keys) for (new, _, _), r in zip(read, batch)]
                loss = policy = aggregate([t for t, _ in terms], how, longest)
                found["loss/policy"].append(policy.item())
                found["policy/clip_fraction"].append(torch.cat([c for _, c in terms]).mean().item())
                if in_loss:
                    divergence = aggregate([per_token(keys["kl_estimator"], whole - r.reference)
                                            for (_, whole, _), r in zip(read, batch)], how, longest)
                    found["loss/kl"].append(divergence.item())
                    loss = loss + used * divergence
                if "entropy_coef" in keys:
                    entropy = aggregate([e for _, _, e in read], how, longest)
                    found["loss/entropy"].append(entropy.item())
                    loss = loss - keys["entropy_coef"] * entropy
                if ptx:
                    text = next_token(actor.w, ptx.next())
                    found["loss/ptx"].append(text.item())
                    loss = loss + keys["ptx_coef"] * text
                actor.step(loss, rates[0])
                if critic:
                    errors, clips = [], []
                    for r in batch:
                        v = (hidden(critic.w, r.ids[:-1]) @ critic.w["score.weight"].T)[r.start - 1:, 0]
                        c = keys["cliprange_value"]
                        near = r.values + (v - r.values).clamp(-c, c)
                        plain, clipped = (v - r.returns) ** 2, (near - r.returns) ** 2
                        errors.append(torch.maximum(plain, clipped))
                        clips.append((clipped > plain).double())
                    value = 0.5 * torch.cat(errors).mean()
                    found["loss/value"].append(value.item())
                    found["value/clip_fraction"].append(torch.cat(clips).mean().item())
                    critic.step(keys["vf_coef"] * value, rates[1])
        means = {name: sum(v) / len(v) for name, v in found.items() if v}
        means |= {"objective/kl": kl, "objective/kl_coef": used, "objective/scores": sum(raw) / len(raw)}
        if critic:
            target, known = torch.cat(returns), torch.cat([r.values for r in responses])
            means["value/explained_variance"] = 1 - ((target - known).var() / target.var()).item()
        for name in names:
            if name in means:
                log[name].append(means[name])
    return actor.frozen(), {name: values for name, values in log.items() if values}
