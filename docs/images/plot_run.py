#!/usr/bin/env python3
"""Draws reward, judge and KL of a PPO run as an SVG. Needs Python 3 and nothing else.

    python3 docs/images/plot_run.py runs/quickstart/ppo/metrics.jsonl docs/images/quickstart.svg

Each further pair `METRIC=LABEL` replaces the default panels by one panel for that metric:

    python3 docs/images/plot_run.py runs/x/ppo/metrics.jsonl x.svg objective/entropy=entropy
"""
import json
import sys

# A panel: title, then its curves: metric, label, colour. Metrics of evaluations are dotted.
PANELS = [
    ("score", [("objective/scores", "reward, training prompts", "#4c78a8"),
               ("eval/score", "reward, held-out prompts", "#1f3d5c"),
               ("eval/judge_score", "judge, held-out prompts", "#e45756")]),
    ("KL per sequence, nats", [("objective/kl", "training prompts", "#4c78a8"),
                               ("eval/kl", "held-out prompts", "#1f3d5c")]),
    ("tokens per completion", [("rollout/length_mean", "training prompts", "#4c78a8"),
                               ("eval/length_mean", "held-out prompts", "#1f3d5c")]),
]
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 200, 40, 34, 24
FONT = 'font-family="sans-serif" font-size="13"'


def points(rows, metric):
    return [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), (int, float))]


def ticks(low, high):
    """About four round values between low and high."""
    step = 10.0 ** len(str(int(high - low))) / 100
    while (high - low) / step > 5:
        step *= 2 if str(step)[0] != "2" else 2.5
    first = int(low / step) - 1
    values = [step * i for i in range(first, first + 20)]
    return [value for value in values if low <= value <= high]


def panel(rows, left, title, curves):
    drawn = [(points(rows, metric), metric, label, colour) for metric, label, colour in curves]
    drawn = [curve for curve in drawn if curve[0]]
    every = [point for curve in drawn for point in curve[0]]
    last = max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    low, high = low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9
    place = lambda x, y: (left + WIDTH * x / last, TOP + HEIGHT * (high - y) / (high - low))
    out = [f'<text x="{left}" y="{TOP - 12}" font-weight="bold" {FONT}>{title}</text>',
           f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>']
    for value in ticks(low, high):
        _, y = place(0, value)
        out.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end" {FONT}>{value:g}</text>')
    right = f'x="{left + WIDTH}" y="{TOP - 12}" text-anchor="end"'
    out.append(f'<text {right} fill="#777" {FONT}>by iteration</text>')
    for value in ticks(0, last):
        x, _ = place(value, low)
        out.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 14}" text-anchor="middle" {FONT}>{value:g}</text>')
    for row, (values, metric, label, colour) in enumerate(drawn):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in values)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if metric.startswith("eval/"):
            dots = ('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*place(x, y), colour) for x, y in values)
            out.extend(dots)
        y = TOP + HEIGHT + 34 + 15 * row
        out.append(f'<line x1="{left}" x2="{left + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{left + 24}" y="{y}" {FONT}>{label}</text>')
    return out


def draw(rows, panels):
    width = len(panels) * (LEFT + WIDTH + GAP) + GAP
    height = TOP + HEIGHT + 40 + 15 * max(len(curves) for _, curves in panels)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for index, (title, curves) in enumerate(panels):
        out += panel(rows, LEFT + index * (LEFT + WIDTH + GAP), title, curves)
    return "\n".join(out + ["</svg>", ""])


if __name__ == "__main__":
    source, target, *chosen = sys.argv[1:]
    with open(source) as lines:
        rows = [json.loads(line) for line in lines]
    panels = [(label, [(metric, label, "#4c78a8")]) for metric, label in (pair.split("=") for pair in chosen)]
    with open(target, "w") as svg:
        svg.write(draw(rows, panels or PANELS))
