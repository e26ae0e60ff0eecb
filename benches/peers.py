#!/usr/bin/env python3
"""The peers on the CPU (PyTorch, transformers, TRL), f32: one JSON line a case, appended to --out.

    python -m venv peers && peers/bin/pip install torch transformers trl==1.12.0 datasets
    peers/bin/python benches/peers.py --what generate --model tiny6|smollm2 --batch 8|32
    peers/bin/python benches/peers.py --what ragged   --model tiny6|smollm2 --batch 32
    peers/bin/python benches/peers.py --what sft      --model tiny6|smollm2
    peers/bin/python benches/peers.py --what ppo      --model tiny6|smollm2 --minibatches 4
    peers/bin/python benches/peers.py --what ppo      --model quickstart --batch 64 --prompt 10 --new 40 --epochs 2 --minibatches 2
    peers/bin/python benches/peers.py --what ceil     (what PyTorch's products and copies reach)
    peers/bin/python benches/peers.py --what all      (all of these, each in a process of its own, so that peak memory is its own)

Each number: one run to warm up, then the median of --reps (3).
"""
import argparse, json, os, resource, statistics, subprocess, sys, time
ap = argparse.ArgumentParser()
ap.add_argument("--what", required=True, choices=["ceil", "generate", "ragged", "sft", "ppo", "all"])
ap.add_argument("--model", default="tiny6", choices=["tiny6", "smollm2", "quickstart"])
ap.add_argument("--batch", type=int); ap.add_argument("--minibatches", type=int, default=1)
ap.add_argument("--epochs", type=int, default=4); ap.add_argument("--prompt", type=int, default=32); ap.add_argument("--new", type=int)
ap.add_argument("--seq", type=int, default=256); ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--reps", type=int, default=3); ap.add_argument("--smollm2", default="models/smollm2-135m")
ap.add_argument("--out", default="peers.jsonl")
a = ap.parse_args()
if a.what == "all":
    me = [os.path.abspath(__file__), "--threads", str(a.threads), "--reps", str(a.reps), "--out", a.out, "--smollm2", a.smollm2]
    quick = ["--model", "quickstart", "--batch", "64", "--prompt", "10", "--new", "40", "--epochs", "2", "--minibatches", "2"]
    runs = [["--what", "ceil"], ["--what", "ppo", "--minibatches", "4"], ["--what", "ppo", *quick],
            ["--what", "ppo", "--model", "smollm2", "--minibatches", "4"]]
    runs += [["--what", w, "--model", m, *b] for m in ("tiny6", "smollm2")
             for w, b in (("generate", ["--batch", "8"]), ("generate", ["--batch", "32"]), ("ragged", []), ("sft", []))]
    for r in runs:
        subprocess.call([sys.executable, *me, *r])
    sys.exit()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(a.threads)
os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
import warnings; warnings.filterwarnings("ignore")
import numpy as np, torch
torch.set_num_threads(a.threads); torch.manual_seed(0)
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def cpu():      # seconds of CPU: (this process, the whole machine)
    r = resource.getrusage(resource.RUSAGE_SELF); v = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return r.ru_utime + r.ru_stime, (sum(v) - v[3] - v[4]) / os.sysconf("SC_CLK_TCK"), time.perf_counter()
MARK = [None, None]
def med(f):
    f(); ts = []; MARK[0] = cpu()
    for _ in range(a.reps):
        t = time.perf_counter(); f(); ts.append(time.perf_counter() - t)
    MARK[1] = cpu()
    return statistics.median(ts), ts
def emit(**k):
    runs = k.pop("runs"); d = [y - x for x, y in zip(*MARK)]
    # own_cores: mean cores this process used while timed; other_cores: what everything else used (above ~0.1 = not a quiet machine)
    k = dict(what=a.what, **k, runs_s=[round(t, 4) for t in runs], own_cores=round(d[0] / d[2], 2), other_cores=round(max(0, d[1] - d[0]) / d[2], 2),
             threads=torch.get_num_threads(), dtype="f32", when=time.strftime("%H:%M:%S"), nice=os.nice(0),
             peak_rss_mib=round(rss()), rss_after_import_mib=round(BASE), torch=torch.__version__,
             **({"transformers": TV} if a.what != "ceil" else {}))
    with open(a.out, "a") as f: f.write(json.dumps(k) + "\n")
    print(json.dumps(k), flush=True)

if a.what == "ceil":
    BASE = rss()
    for n, th in ((1024, a.threads), (1024, 1), (2048, a.threads)):
        torch.set_num_threads(th); x, y = torch.randn(n, n), torch.randn(n, n); z = torch.empty(n, n)
        r = 8
        def f():
            for _ in range(r): torch.mm(x, y, out=z)
        t, ts = med(f); emit(name=f"matmul {n}^3", gflops=round(2 * n**3 * r / t / 1e9, 1), runs=ts)
    for (m, k, n) in ((2048, 576, 1536), (8, 576, 1536), (32, 576, 1536), (2048, 256, 688)):
        torch.set_num_threads(a.threads); x, y = torch.randn(m, k), torch.randn(n, k); r = 30 if m > 100 else 400
        def f():
            for _ in range(r): torch.nn.functional.linear(x, y)
        t, ts = med(f); emit(name=f"linear {m}x{k}->{n}", gflops=round(2 * m * k * n * r / t / 1e9, 1), runs=ts)
    for th in (a.threads, 1):
        torch.set_num_threads(th); s = torch.ones(250_000_000); d = torch.empty_like(s); d.copy_(s)
        t, ts = med(lambda: d.copy_(s)); emit(name="copy 1 GB", copied_gb_s=round(1 / t, 2), traffic_read_plus_write_gb_s=round(2 / t, 2), runs=ts)
    print(torch.__config__.parallel_info()); sys.exit()

import transformers; TV = transformers.__version__
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, AutoModelForCausalLM, GenerationConfig
transformers.logging.set_verbosity_error()
BASE = rss()
TINY = dict(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0)
if a.model == "quickstart":
    TINY.update(vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
                num_key_value_heads=6, max_position_embeddings=128, tie_word_embeddings=True)
def causal():
    if a.model != "smollm2": return LlamaForCausalLM(LlamaConfig(**TINY))
    return AutoModelForCausalLM.from_pretrained(a.smollm2, dtype=torch.float32)

if a.what == "generate":
    m = causal().eval(); b, n = a.batch or 8, a.new or 128; v = m.config.vocab_size
    ids = torch.randint(32, v, (b, a.prompt)); g = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=n, min_new_tokens=n, pad_token_id=m.config.pad_token_id, eos_token_id=m.config.eos_token_id)
    @torch.inference_mode()
    def f():
        o = m.generate(ids, attention_mask=torch.ones_like(ids), generation_config=g); assert o.shape == (b, a.prompt + n)
    t, ts = med(f)
    emit(model=a.model, params=m.num_parameters(), batch=b, prompt=a.prompt, new=n, seconds=round(t, 3), new_tokens_per_s=round(b * n / t, 1),
         attn=m.config._attn_implementation, runs=ts)

if a.what == "ragged":     # 128 prompts whose lengths differ; static batches of b run to the longest of each batch
    m = causal().eval(); b = a.batch or 32; v = m.config.vocab_size; N = 128
    rng = np.random.default_rng(5); lens = np.minimum(128, 1 + rng.geometric(1 / 48, N)); ids = torch.randint(32, v, (N, a.prompt))
    @torch.inference_mode()
    def f():
        for i in range(0, N, b):
            n = int(lens[i:i + b].max())
            m.generate(ids[i:i + b], attention_mask=torch.ones_like(ids[i:i + b]), generation_config=GenerationConfig(do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=n, min_new_tokens=n, pad_token_id=m.config.pad_token_id, eos_token_id=m.config.eos_token_id))
    t, ts = med(f)
    emit(model=a.model, params=m.num_parameters(), batch=b, prompt=a.prompt, lengths=[int(x) for x in lens], useful_tokens=int(lens.sum()), seconds=round(t, 3),
         useful_tokens_per_s=round(float(lens.sum()) / t, 1), runs=ts)

if a.what == "sft":
    m = causal().train(); b, s = a.batch or 8, a.seq; ids = torch.randint(32, m.config.vocab_size, (b, s))
    o = torch.optim.AdamW(m.parameters(), lr=1e-5)
    def f():
        loss = m(input_ids=ids, labels=ids, use_cache=False).loss; loss.backward(); o.step(); o.zero_grad(set_to_none=True); loss.item()
    t, ts = med(f)
    emit(model=a.model, params=m.num_parameters(), batch=b, seq=s, seconds=round(t, 3), tokens_per_s=round(b * s / t, 1),
         attn=m.config._attn_implementation, runs=ts)

if a.what == "ppo":
    import trl, trl.experimental.ppo.ppo_trainer as P, tempfile
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    # a stand-in tokenizer: only its special ids and padding are used
    voc = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, TINY["vocab_size"])}}
    tk = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(voc, unk_token="t3")), pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left")
    b, n = a.batch or 32, a.new or 64
    pol, ref = causal(), causal(); ref.load_state_dict(pol.state_dict())
    if a.model != "smollm2": cls = lambda: LlamaForSequenceClassification(LlamaConfig(**TINY, num_labels=1))
    else:
        import copy
        def cls():      # the language model's body with a fresh scalar head, as a reward model starts
            c = copy.deepcopy(pol.config); c.num_labels = 1; c.pad_token_id = 0; m = LlamaForSequenceClassification(c).float()
            m.model.load_state_dict(pol.model.state_dict()); return m
    val, rew = cls(), cls()
    ds = Dataset.from_dict({"input_ids": torch.randint(32, TINY["vocab_size"], (b * 8, a.prompt)).tolist()})
    cfg = PPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=b, gradient_accumulation_steps=1, num_mini_batches=a.minibatches,
        num_ppo_epochs=a.epochs, response_length=n, total_episodes=b * (1 + a.reps), temperature=1.0, local_rollout_forward_batch_size=b,
        learning_rate=1e-5, kl_coef=0.05, bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy="no",
        num_sample_generations=0, logging_steps=1, disable_tqdm=True, stop_token=None)
    T = {"end": [], "gen": [], "upd": []}; lens = []
    bg = P.batch_generation
    def timed(*x, **k):
        t = time.perf_counter(); r = bg(*x, **k); T["gen"].append((t, time.perf_counter())); lens.append(r[0].shape[1]); return r
    P.batch_generation = timed
    perm = np.random.permutation
    def marked(x):
        if len(T["upd"]) < len(T["gen"]): T["upd"].append(time.perf_counter())
        return perm(x)
    np.random.permutation = marked
    class CB(TrainerCallback):
        def on_train_begin(self, *x, **k): T["end"].append(time.perf_counter())
        def on_step_end(self, *x, **k):
            T["end"].append(time.perf_counter()); MARK[1] = cpu()
            if MARK[0] is None: MARK[0] = cpu()
    tr = PPOTrainer(args=cfg, processing_class=tk, model=pol, ref_model=ref, reward_model=rew, value_model=val, train_dataset=ds, callbacks=[CB()])
    tr.train()
    assert set(lens) == {a.prompt + n}, lens
    it = [T["end"][i + 1] - T["end"][i] for i in range(1, 1 + a.reps)]
    gen = [e - s for s, e in T["gen"][1:]]; sc = [u - e for (s, e), u in zip(T["gen"], T["upd"])][1:]; up = [e - u for e, u in zip(T["end"][1:], T["upd"])][1:]
    r = lambda x: round(statistics.median(x), 3)
    emit(model=a.model, trl=trl.__version__, params=pol.num_parameters(), batch=b, prompt=a.prompt, response=n, ppo_epochs=a.epochs, minibatches=a.minibatches,
         optimizer_steps=a.epochs * a.minibatches, seconds_per_iteration=r(it), generate_s=r(gen), score_s=r(sc), update_s=r(up),
         samples_per_s=round(b / r(it), 2), attn=pol.config._attn_implementation, runs=it)
