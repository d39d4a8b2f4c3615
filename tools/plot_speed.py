#!/usr/bin/env python3
"""Draws decode speed against context from rows of `tidal bench -o jsonl --details`, as an SVG on stdout:

    tidal bench -m MODEL -p 0 -d 0,4096,8192,16384,32000 --fill random --baseline llama.cpp -o jsonl --details >rows.jsonl
    tools/plot_speed.py rows.jsonl >docs/speed.svg
"""
import json
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 64, 150, 48, 52
COLOURS = {"llama.cpp full": "#8a8f98", "tidal full": "#4c8dd6", "tidal tidal": "#0f6b5c"}
NAMES = {"llama.cpp full": "llama.cpp", "tidal full": "tidal, full attention", "tidal tidal": "tidal, K={budget}"}


def series(rows):
    lines = {}
    for row in rows:
        if row["test"].startswith("tg") and row["batch"] == 1:
            lines.setdefault(row["engine"] + " " + row["attention"], []).append(row)
    return {name: sorted(points, key=lambda row: row["depth"]) for name, points in lines.items()}


def main():
    with open(sys.argv[1]) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    lines = series(rows)
    deepest = max(row["depth"] for points in lines.values() for row in points)
    slowest = max(row["ms_per_token"] for points in lines.values() for row in points) * 1.05
    x = lambda depth: LEFT + depth / deepest * (WIDTH - LEFT - RIGHT)
    y = lambda ms: HEIGHT - BOTTOM - ms / slowest * (HEIGHT - TOP - BOTTOM)
    first = rows[0]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">Milliseconds per token against context</text>',
        f'<text x="{LEFT}" y="37" fill="#555">{first["model"]}, {first["threads"]} threads on {first["machine"]}, batch 1</text>',
    ]
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if slowest / s <= 8)
    for tick in range(0, int(slowest) + 1, step):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#e5e7ea"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#555">{tick}</text>')
    for depth in sorted({row["depth"] for points in lines.values() for row in points}):
        out.append(f'<text x="{x(depth):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#555">{depth}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle" fill="#555">tokens in the cache</text>')
    for name, points in lines.items():
        colour = COLOURS.get(name, "#b04a4a")
        path = " ".join(f'{x(row["depth"]):.1f},{y(row["ms_per_token"]):.1f}' for row in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for row in points:
            out.append(f'<circle cx="{x(row["depth"]):.1f}" cy="{y(row["ms_per_token"]):.1f}" r="3.5" fill="{colour}"/>')
        last = points[-1]
        label = NAMES.get(name, name).format(budget=last.get("budget"))
        out.append(f'<text x="{x(last["depth"]) + 10:.1f}" y="{y(last["ms_per_token"]) + 4:.1f}" fill="{colour}">{label}</text>')
        out.append(f'<text x="{x(last["depth"]) + 10:.1f}" y="{y(last["ms_per_token"]) + 19:.1f}" fill="{colour}" font-weight="bold">{last["ms_per_token"]:.1f} ms</text>')
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
