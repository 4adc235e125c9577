#!/usr/bin/env python3
"""Instructions of one turn of a kernel's loop, where nothing rare happens.

usage: cuobjdump -sass -arch sm_90a -fun ENTRY FATBIN | bench/hot_path.py ELEMENTS [--list]

For each loop of 300 instructions and more: the way from its head back to it that calls nothing
(rare divisions and roots do) and, of those, has the most roots, loads and stores of 8 and 16
bytes, and loads from shared memory: the way of lanes whose elements all exist. Prints how many
instructions, how many an element if a lane has ELEMENTS of them, and how many of each kind."""

import re
import sys
from collections import Counter

RARE = ("FCHK", "CALL")
WANTED = {"MUFU.RSQ": 9999, "LDG.E.128": 9999, "STG.E.128": 9999, "STG.E.64": 9999, "LDS": 99}


def parse(lines):
    found = (re.match(r"\s*/\*([0-9a-f]{4,5})\*/\s+(@\S+\s+)?(\S+)([^;]*);", line) for line in lines)
    return [(int(m[1], 16), m[2], m[3], m[4]) for m in found if m]


def weight(name):
    if name.startswith(RARE):
        return 10**7
    wanted = next((w for start, w in WANTED.items() if name.startswith(start)), 0)
    return -wanted if wanted else int(name != "NOP")


def main():
    if len(sys.argv) not in (2, 3) or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    code = parse(sys.stdin)
    at = {address: i for i, (address, *_) in enumerate(code)}
    follow, loops = [[] for _ in code], []
    for i, (address, predicate, name, rest) in enumerate(code):
        goes_on = i + 1 < len(code)
        if name.startswith("BRA"):
            target = at.get(int(re.findall(r"0x([0-9a-f]+)", rest)[-1], 16), i)
            follow[i].append(target) if target > i else loops.append((target, i))
            goes_on &= bool(predicate or re.match(r"\s*!?U?P\d", rest))
        elif name.startswith(("EXIT", "RET")):
            goes_on &= bool(predicate)
        if goes_on:
            follow[i].append(i + 1)
    for head, tail in loops:
        if tail - head < 300:
            continue
        best, before = {head: weight(code[head][2])}, {}
        for i in range(head, tail):
            for j in follow[i] if i in best else []:
                cost = best[i] + weight(code[j][2])
                if j <= tail and cost < best.get(j, cost + 1):
                    best[j], before[j] = cost, i
        if tail not in best:
            continue
        way = [tail]
        while way[-1] != head:
            way.append(before[way[-1]])
        way = [code[i] for i in reversed(way) if code[i][2] != "NOP"]
        kinds = Counter(name.split(".")[0] for _, _, name, _ in way).most_common()
        each = len(way) / int(sys.argv[1])
        print(f"loop at {code[head][0]:#x}: {len(way)} instructions, {each:.1f} an element;",
              ", ".join(f"{n} {kind}" for kind, n in kinds))
        if sys.argv[2:] == ["--list"]:
            print("".join(f"  {a:#x} {p or ''}{n}{r}\n" for a, p, n, r in way))


main()
