#!/usr/bin/env python3
"""Make the sums of configs/arithmetic.toml.

    python3 make_arithmetic.py --out DIR

All 8,100 additions of two numbers of two digits, parted into those held out, those to fine-tune on (mostly easy ones) and
those to tune on by a rule. a+b and b+a always stand in the same file. An answer's digits stand from the last to the first, as
one finds them by hand: each then follows from two digits and a carry.

Standard library only. Every Python 3.9 or newer writes the same bytes: orders come from SHA-256 of (seed, purpose, text),
never from a random generator's state.
"""

import argparse
import hashlib
import json
from pathlib import Path

SEED = 17
NUMBERS = range(10, 100)
EVAL_PAIRS = 256  # pairs of different numbers, each of which gives two problems
EASY_PAIRS = 800  # to fine-tune on, with a sum below 100
HARD_PAIRS = 50  # to fine-tune on, with a sum of three digits
COUNTED = 10  # numbers of a line of counting


def shuffled(items, purpose):
    """The items in an order that is a function of the seed, the purpose and each item's own text."""
    return sorted(items, key=lambda s: hashlib.sha256(f"{SEED}\0{purpose}\0{s}".encode()).digest())


def mirrored(pairs):
    """Both orders of each pair, mixed."""
    return shuffled([p for a, b in pairs for p in ((a, b), (b, a))], "order")


def prompt(pair):
    return f"{pair[0]}+{pair[1]}="


def answer(pair):
    """The sum, its last digit first."""
    return str(sum(pair))[::-1]


def records():
    """File name -> its records. Doubles (a+a) are never held out."""
    pairs = shuffled([(a, b) for a in NUMBERS for b in NUMBERS if a < b], "pairs")
    held_out, training = pairs[:EVAL_PAIRS], pairs[EVAL_PAIRS:]
    easy, hard = [p for p in training if sum(p) < 100], [p for p in training if sum(p) >= 100]
    doubles = [(a, a) for a in NUMBERS]
    sft = mirrored(easy[:EASY_PAIRS] + hard[:HARD_PAIRS])
    rest = shuffled(mirrored(easy[EASY_PAIRS:] + hard[HARD_PAIRS:]) + doubles, "order")
    return {
        "arithmetic_sft.jsonl": [{"prompt": prompt(p), "completion": answer(p)} for p in sft],
        "arithmetic_prompts.jsonl": [{"prompt": prompt(p), "answer": answer(p)} for p in rest],
        "arithmetic_prompts_eval.jsonl": [{"prompt": prompt(p), "answer": answer(p)} for p in mirrored(held_out)],
    }


def counting():
    """Lines that count up or down by one, below 200."""
    up = [range(start, start + COUNTED) for start in range(200 - COUNTED + 1)]
    lines = [" ".join(map(str, line)) for numbers in up for line in (numbers, reversed(numbers))]
    return shuffled(lines, "counting")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    texts = {
        name: "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows) for name, rows in records().items()
    }
    texts["arithmetic_counting.txt"] = "".join(line + "\n" for line in counting())
    for name, text in sorted(texts.items()):
        (out / name).write_bytes(text.encode())
        print(f"| `{name}` | {len(text.splitlines()):,} | {len(text.encode()):,} |")


if __name__ == "__main__":
    main()
