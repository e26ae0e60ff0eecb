#!/usr/bin/env python3
"""Make the quickstart's data from two texts and a valence lexicon.

    python3 make_quickstart.py --text-train TRAIN.txt --text-val VAL.txt --lexicon LEXICON.tsv --out DIR

Standard library only. The same inputs give the same bytes on every Python 3.9 or newer: orders come from SHA-256 of
(seed, purpose, text), never from a random generator's state. README.md beside this file says where the inputs come
from, what each output is for, and holds the table that this script prints.

Not here: fetching the inputs, and tokenisation (the engine's business).
"""

import argparse
import hashlib
import json
import re
import sys
from itertools import groupby
from pathlib import Path

SEED = 17
WORDS = range(13, 33)  # a sentence's length in words (runs of non-blank characters)
PROMPT_WORDS = 8
EVAL_PROMPTS = 256
TRAIN_PAIRS = 5000  # for the reward model, and as many for the judge
EVAL_PAIRS = 500
HALF_PAIRS = 2000  # for the reward model of one half of the lexicon, and as many for the judge of the other
MIN_GAP = 2.0  # least difference in valence within a pair
MAX_USES = 6  # pairs that one sentence may stand in

# A sentence ends at . ! or ?, with the marks that close it, before a blank or a dash and then a capital.
SENTENCE_END = re.compile(r"[.!?][\"')]*(?:\s+|--)(?=[\"'(]*[A-Z])")
# ... unless what stands before the full stop is an abbreviation or an initial.
ABBREVIATION = re.compile(r"(?<![A-Za-z])(?:Mr|Mrs|Messrs|Dr|St|Capt|Col|Rev|Esq|Vol|No|[A-Z])\.$")
WELL_FORMED = re.compile(r"[\"'(]*[A-Z].*[.!?][\"')]*", re.DOTALL)
# A quotation opens at a word's start and closes at a word's end.
QUOTATION = re.compile(r"(?:^|(?<=[\s(-]))\"(?=\S)[^\"]*(?<=\S)\"(?!\w)")
# Marks of typesetting rather than of prose: _italics_, *notes, [brackets], &c.
TYPESETTING = re.compile(r"[_*\[\]&]")

# "Miss" is a title in these novels, seventy times for each time it is the word that the lexicon scored.
NOT_VALENCE = {"miss"}


def lexicon(path):
    """Word -> mean valence in [-4, 4], cut to words of the letters a-z alone."""
    rows = (line.split("\t")[:2] for line in path.read_text(encoding="utf-8").splitlines())
    return {w: float(v) for w, v in rows if re.fullmatch("[a-z]+", w) and w not in NOT_VALENCE}


def valence(text, words):
    """Sum of the valences of the text's words; a word that the lexicon lacks counts 0.

    The words are the runs of ASCII letters and apostrophes, lower-cased, outer apostrophes taken off.
    """
    runs = re.findall(r"[A-Za-z']+", text)
    return sum(words.get(run.strip("'").lower(), 0.0) for run in runs)


def half(words, which):
    """Every other word of the lexicon in alphabetical order, from the first (0) or the second (1) on."""
    return {word: words[word] for word in sorted(words)[which::2]}


def paragraphs(text):
    """The text's paragraphs on one line each, without headings (paragraphs that lack a lower-case word or a stop)."""
    for block in text.split("\n\n"):
        line = " ".join(block.split())
        if re.search(r"\b[a-z]{2,}", line) and re.search(r"[.!?;,:]", line):
            yield line


def split_sentences(paragraph):
    """The paragraph cut at its sentence ends. Dashes that join two sentences belong to neither."""
    start = 0
    for end in SENTENCE_END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph[start : end.start() + 1]):
            yield paragraph[start : end.end()].removesuffix("--").strip()
            start = end.end()
    yield paragraph[start:].strip()


def whole(sentence):
    """The sentence without an outer quotation mark whose partner stands in another sentence of the same speech."""
    if sentence.count('"') % 2 == 0:
        return sentence
    return sentence[1:] if sentence.startswith('"') else sentence.removesuffix('"')


def is_clean(sentence):
    """Of the right length, begun and ended like a sentence, every quotation and bracket whole, no typesetting."""
    return (
        len(sentence.split()) in WORDS
        and WELL_FORMED.fullmatch(sentence)
        and '"' not in QUOTATION.sub("", sentence)
        and sentence.count("(") == sentence.count(")")
        and not TYPESETTING.search(sentence)
    )


def sentences(text):
    """The clean sentences of a text in reading order, each once."""
    found = (whole(s) for p in paragraphs(text) for s in split_sentences(p))
    return list(dict.fromkeys(s for s in found if is_clean(s)))


def shuffled(items, purpose):
    """The items in an order that is a function of the seed, the purpose and each item's own text."""
    return sorted(items, key=lambda s: hashlib.sha256(f"{SEED}\0{purpose}\0{s}".encode()).digest())


def completion_record(sentence):
    """`{prompt, completion}`, which joined are the sentence; None where the prompt would end in punctuation."""
    prompt = " ".join(sentence.split()[:PROMPT_WORDS])
    return {"prompt": prompt, "completion": sentence[len(prompt) :]} if prompt[-1].isalnum() else None


def contrast(a, b, words):
    """`{chosen, rejected}`, the one of higher valence chosen; None where the two are too close to say."""
    gap = valence(a, words) - valence(b, words)
    if abs(gap) < MIN_GAP:
        return None
    return {"chosen": a, "rejected": b} if gap > 0 else {"chosen": b, "rejected": a}


def pairs(pool, words, count, purpose):
    """`count` different pairs of sentences with the same number of words, so that length does not tell the label.

    In each round every sentence meets at most one other, so MAX_USES rounds bound what one sentence can weigh.
    """
    met = {}
    for turn in range(MAX_USES):
        order = sorted(shuffled(pool, f"{purpose}{turn}"), key=lambda s: len(s.split()))  # stable
        for _, group in groupby(order, key=lambda s: len(s.split())):
            group = list(group)
            for a, b in zip(group[::2], group[1::2]):
                met.setdefault(frozenset((a, b)), contrast(a, b, words))
        found = [pair for pair in met.values() if pair]
        if len(found) >= count:
            return shuffled_pairs(found, purpose)[:count]
    sys.exit(f"only {len(found)} of {count} pairs for {purpose}: lower MIN_GAP or raise MAX_USES")


def shuffled_pairs(found, purpose):
    """The pairs in an order that is a function of the seed, the purpose and their text."""
    by_text = {pair["chosen"] + "\n" + pair["rejected"]: pair for pair in found}
    return [by_text[text] for text in shuffled(by_text, purpose)]


def held_out(text, train_text):
    """The clean sentences of the validation text that stand nowhere in the training text."""
    flat = " ".join(train_text.split())
    return [s for s in sentences(text) if s not in flat]


def build(train_text, val_text, words):
    """File name -> records of every JSONL file."""
    train, val = sentences(train_text), shuffled(held_out(val_text, train_text), "held out")
    sft = [r for r in map(completion_record, shuffled(train, "sft")) if r]
    sft_val = [r for r in map(completion_record, val) if r]
    return {
        "sft.jsonl": sft,
        "sft_eval.jsonl": sft_val[EVAL_PROMPTS:],
        "prompts_eval.jsonl": [{"prompt": r["prompt"]} for r in sft_val[:EVAL_PROMPTS]],
        "pairs_reward.jsonl": pairs(train[0::2], words, TRAIN_PAIRS, "reward"),
        "pairs_judge.jsonl": pairs(train[1::2], words, TRAIN_PAIRS, "judge"),
        "pairs_eval.jsonl": pairs(val, words, EVAL_PAIRS, "eval"),
        "pairs_half_reward.jsonl": pairs(train[0::2], half(words, 0), HALF_PAIRS, "half reward"),
        "pairs_half_judge.jsonl": pairs(train[1::2], half(words, 1), HALF_PAIRS, "half judge"),
    }


def texts_of(record):
    """The sentences that a record holds, or the start of one where it holds a prompt alone."""
    if "chosen" in record:
        return [record["chosen"], record["rejected"]]
    return [record["prompt"] + record.get("completion", "")]


def check_separation(files):
    """Stop if training data begins like anything held out, or the judge shares a sentence with the reward model."""
    seen = {name: {t for r in records for t in texts_of(r)} for name, records in files.items()}
    for kind in ("", "half_"):
        if seen[f"pairs_{kind}reward.jsonl"] & seen[f"pairs_{kind}judge.jsonl"]:
            sys.exit("the reward model and the judge share a sentence")
    starts = {" ".join(t.split()[:PROMPT_WORDS]) for n, ts in seen.items() if "_eval" not in n for t in ts}
    for name in (n for n in files if "_eval" in n):
        leaked = [t for t in seen[name] if " ".join(t.split()[:PROMPT_WORDS]) in starts]
        if leaked:
            sys.exit(f"{name}: training data begins the same way as {leaked[0]!r}")


def mean(values):
    """Arithmetic mean."""
    values = list(values)
    return sum(values) / len(values)


def statistics(out, files, words):
    """The README's two tables, as Markdown."""
    yield "| File | Records | Bytes | Words a text |\n|---|---|---|---|"
    for path in sorted(p for p in out.iterdir() if p.suffix in (".txt", ".tsv", ".jsonl")):
        records = files.get(path.name)
        length = f"{mean(len(t.split()) for r in records for t in texts_of(r)):.1f}" if records else ""
        count = len(records) if records else len(path.read_text(encoding="utf-8").splitlines())
        yield f"| `{path.name}` | {count:,} | {path.stat().st_size:,} | {length} |"
    yield "\n| Pairs | Valence chosen | Valence rejected | Chosen has more characters | Sentences | Most uses of one |"
    yield "|---|---|---|---|---|---|"
    for name in (n for n in files if n.startswith("pairs")):
        yield pair_statistics(name, files[name], words)


def pair_statistics(name, records, words):
    """One row of the second table; a tie in length counts one half."""
    chosen, rejected = ([r[side] for r in records] for side in ("chosen", "rejected"))
    uses = [chosen.count(s) + rejected.count(s) for s in set(chosen + rejected)]
    longer = mean((len(c) > len(r)) + 0.5 * (len(c) == len(r)) for c, r in zip(chosen, rejected))
    up, down = (mean(valence(s, words) for s in side) for side in (chosen, rejected))
    return f"| `{name}` | {up:.2f} | {down:.2f} | {100 * longer:.1f}% | {len(uses):,} | {max(uses)} |"


def write(out, name, lines):
    """Write one file with Unix line ends on every system."""
    with open(out / name, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("--text-train", "--text-val", "--lexicon", "--out"):
        parser.add_argument(flag, type=Path, required=True)
    given = parser.parse_args()
    words = lexicon(given.lexicon)
    train_text, val_text = (p.read_text(encoding="utf-8") for p in (given.text_train, given.text_val))
    files = build(train_text, val_text, words)
    check_separation(files)

    given.out.mkdir(parents=True, exist_ok=True)
    write(given.out, "austen_train.txt", train_text.splitlines())
    write(given.out, "austen_val.txt", val_text.splitlines())
    write(given.out, "vader_lexicon.tsv", (f"{w}\t{v}" for w, v in sorted(words.items())))
    for name, records in files.items():
        write(given.out, name, (json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in records))
    print("\n".join(statistics(given.out, files, words)))


if __name__ == "__main__":
    main()
