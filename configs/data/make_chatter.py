#!/usr/bin/env python3
"""Make the small chat data of configs/smollm2.toml from question and answer pairs.

    python3 make_chatter.py --pairs PAIRS.jsonl --out DIR

PAIRS.jsonl has `prompt`, `response` and `source` (the corpus file a pair comes from) on each line; README.md beside
this file says how it is made. Standard library only. The same input gives the same bytes on every Python 3.9 or newer:
orders come from SHA-256 of (seed, purpose, text), never from a random generator's state.

Not here: checking the corpus's facts. Some of its answers are wrong, and they are kept as printed.
"""

import argparse
import hashlib
import json
from pathlib import Path

SEED = 17
SOURCE = "trivia"
EVAL_PROMPTS = 32
# Questions about deaths and bodies are left out.
UNFIT = ("suicide", "killed", "shot dead", "crash", "dies", "Hitler", "fascist", "buried", "World War")


def rank(purpose, text):
    """A place in an order that depends on the text and the purpose alone."""
    return hashlib.sha256(f"{SEED}\0{purpose}\0{text}".encode()).digest()


def questions(path):
    """Question and answer, each question once, in an order that its text decides."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fit = {
        row["prompt"]: row["response"]
        for row in reversed(rows)  # of several answers to one question the first stays
        if row["source"] == SOURCE
        and row["prompt"].endswith("?")
        and row["response"]
        and not any(word in row["prompt"] for word in UNFIT)
    }
    return sorted(fit.items(), key=lambda pair: rank("order", pair[0]))


def kind(question):
    """The question's first word, where it says what is asked for: a person, a place, a number or a year."""
    first = question.split()[0].lower()
    return first if first in {"who", "where", "how", "when"} else "what"


def wrong_answer(question, answer, pairs):
    """The answer to another question, of the same kind if there is one; never the right answer's text."""
    others = [pair for pair in pairs if pair[1].lower() != answer.lower()]
    alike = [pair for pair in others if kind(pair[0]) == kind(question)]
    return min(alike or others, key=lambda pair: rank(f"wrong {question}", pair[0]))[1]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def records(pairs):
    """File name -> its records."""
    held_out, training = pairs[:EVAL_PROMPTS], pairs[EVAL_PROMPTS:]
    return {
        "chatter_sft.jsonl": [{"messages": [user(q), assistant(a)]} for q, a in training],
        "chatter_pairs.jsonl": [
            {
                "prompt": [user(q)],
                "chosen": [assistant(a)],
                "rejected": [assistant(wrong_answer(q, a, training))],
            }
            for q, a in training
        ],
        "chatter_prompts_eval.jsonl": [{"prompt": [user(q)]} for q, _ in held_out],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name, rows in records(questions(args.pairs)).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.out / name).write_bytes(text.encode())
        print(f"| `{name}` | {len(rows):,} | {len(text.encode()):,} |")


if __name__ == "__main__":
    main()
