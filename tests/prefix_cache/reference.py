"""The published simulator, written down step by step as the oracle of the tests: plain, quadratic, obvious.

It follows the order of operations of Marconi's evaluation, defects included; `fixes` switches single corrections
on, by the names of `artifact.prefix_cache.index.fidelity`. Nothing here is shared with the package under test.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass
class Cost:
    ssm: int = 24
    attention: int = 4
    mlp: int = 28
    d: int = 4096
    n: int = 128

    @property
    def checkpoint(self):
        return self.ssm * (self.d * self.n * 2 + (2 * self.d + 2 * self.n) * 4 * 2)

    def kv(self, length):
        return self.attention * 4 * self.d * length

    def f_ssm(self, s):
        return 12 * s * self.d**2 + 16 * s * self.d * self.n + 10 * s * self.d

    def f_attention(self, s):
        return 8 * s * self.d**2 + 4 * s**2 * self.d

    def f_mlp(self, s):
        return 16 * s * self.d**2

    def saved(self, hits):
        ssm = self.ssm * self.f_ssm(sum(hits))
        return ssm + sum(self.attention * self.f_attention(h) + self.mlp * self.f_mlp(h) for h in hits)


@dataclass(eq=False)
class Node:
    key: list = field(default_factory=list)
    parent: Node | None = None
    children: dict = field(default_factory=dict)
    ts: int = 0

    def depth(self):
        return 0 if self.parent is None else self.parent.depth() + len(self.key)

    def __lt__(self, other):
        return self.ts < other.ts


def common(a, b):
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


class Trie:
    """What both trees count: their nodes, depth first, and the bytes of these."""

    def nodes(self):
        out, stack = [], list(reversed(self.root.children.values()))
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(reversed(node.children.values()))
        return out

    def bytes(self):
        nodes = self.nodes()
        return len(nodes) * self.cost.checkpoint + self.cost.kv(sum(len(n.key) for n in nodes))


class Tree(Trie):
    """One cache: SGLang+ when `alpha` is None, else Marconi with that alpha."""

    def __init__(self, capacity, cost=None, alpha=None, fixes=(), bootstrap=None):
        self.capacity, self.cost, self.alpha, self.fixes = capacity, cost or Cost(), alpha, set(fixes)
        self.bootstrap = bootstrap
        self.root = Node()
        self.t = 0
        self.history, self.hits, self.lengths = [], [], []
        self.first_eviction = None
        self.tuned = None
        self.peak = 0

    # the tree
    def walk(self, key):
        full, visited, raw, node = [], [self.root], 0, self.root
        while len(key) and key[0] in node.children:
            child = node.children[key[0]]
            p = common(child.key, key)
            raw += p
            visited.append(child)
            key = key[p:]
            if p == len(child.key):
                full.append(child)
            elif "true_prefix" in self.fixes:
                break
            node = child
        return full, raw, visited

    def touch(self, full, visited):
        if self.alpha is None:
            for node in visited:
                node.ts = self.t
        elif full:
            full[-1].ts = self.t

    def insert_walk(self, key):
        node = self.root
        lru = self.alpha is None
        while True:
            if lru:
                node.ts = self.t
            if not len(key):
                return
            child = node.children.get(key[0])
            if child is None:
                node.children[key[0]] = Node(list(key), node, {}, self.t)
                return
            p = common(child.key, key)
            if p < len(child.key):
                mid = Node(child.key[:p], node, {}, self.t)
                node.children[key[0]] = mid
                child.key = child.key[p:]
                child.parent = mid
                mid.children[child.key[0]] = child
                child = mid
            elif p == len(key):
                return
            key = key[p:]
            node = child

    # one request
    def request(self, inp, out):
        inp, seq = list(inp), list(inp) + list(out)
        self.t += 1
        full, _, visited = self.walk(inp)
        self.touch(full, visited)
        hit = sum(len(n.key) for n in full)
        self.hits.append(hit)
        self.lengths.append(len(inp))
        self.history.append((inp, list(out)))
        self.t += 1
        self.maybe_tune()
        self.t += 1
        full, raw, visited = self.walk(seq)
        self.touch(full, visited)
        reused = sum(len(n.key) for n in full)
        need = (2 if raw > reused else 1) * self.cost.checkpoint + self.cost.kv(len(seq) - raw)
        size = self.bytes()
        if size + need > self.capacity:
            self.t += 1
            if self.first_eviction is None:
                self.first_eviction = len(self.hits)
            (self.evict_lru if self.alpha is None else self.evict_marconi)(size + need - self.capacity)
        self.insert_walk(seq)
        self.peak = max(self.peak, self.bytes())
        return hit

    def evict_lru(self, wanted):
        leaves = [n for n in self.nodes() if not n.children]
        heapq.heapify(leaves)
        freed = 0
        while freed < wanted and leaves:
            victim = heapq.heappop(leaves)
            freed += self.cost.checkpoint + self.cost.kv(len(victim.key))
            parent = victim.parent
            del parent.children[victim.key[0]]
            if not parent.children and parent is not self.root:
                heapq.heappush(leaves, parent)

    def efficiency(self, n):
        c, s, total = self.cost, len(n.key), n.depth()
        prefix = total - s
        mlp_prefix = c.f_mlp(prefix) if "mlp_saving" in self.fixes else c.f_attention(prefix)
        flops = c.ssm * c.f_ssm(s) + c.attention * (c.f_attention(total) - c.f_attention(prefix))
        flops += c.mlp * (c.f_mlp(total) - mlp_prefix)
        if "freed_memory" in self.fixes:
            size = c.checkpoint + (0 if n.children else c.kv(s))
        else:
            size = c.checkpoint + c.kv(total)
        return flops / size

    def evict_marconi(self, wanted):
        freed = 0
        while freed < wanted:
            candidates = [n for n in self.nodes() if len(n.children) <= 1]
            if not candidates:
                return
            victim = self.victim(candidates)
            if victim.children:
                (child,) = victim.children.values()
                child.key = victim.key + child.key
                child.ts = max(child.ts, victim.ts)
                child.parent = victim.parent
                victim.parent.children[child.key[0]] = child
                freed += self.cost.checkpoint
            else:
                del victim.parent.children[victim.key[0]]
                counted = victim if "leaf_bytes" in self.fixes else candidates[-1]
                freed += self.cost.checkpoint + self.cost.kv(len(counted.key))

    def victim(self, candidates):
        def normalised(values):
            low, high = min(values), max(values)
            return [1.0 if high == low else (v - low) / (high - low) for v in values]

        efficiency = normalised([self.efficiency(n) for n in candidates])
        recency = normalised([1 / (self.t - n.ts) for n in candidates])
        utility = [self.alpha * e + r for e, r in zip(efficiency, recency, strict=True)]
        return candidates[utility.index(min(utility))]

    def maybe_tune(self):
        if self.bootstrap is None or self.first_eviction is None or self.tuned is not None:
            return
        if len(self.hits) != self.bootstrap * self.first_eviction:
            return
        best = None
        for step in range(21):
            shadow = Tree(self.capacity, self.cost, alpha=step / 10, fixes=self.fixes)
            for inp, out in self.history:
                shadow.request(inp, out)
            saved = self.cost.saved(shadow.hits[-500:])
            if best is None or saved > best[0]:
                best = (saved, step / 10)
        self.alpha = self.tuned = best[1]


class Block:
    def __init__(self, key, parent, ts):
        self.key, self.parent, self.ts, self.children = key, parent, ts, {}

    def __lt__(self, other):
        return self.ts < other.ts


class BlockTree(Trie):
    """vLLM+ as published: a trie of blocks, the last one partial, with the simulator's estimate of the room needed."""

    def __init__(self, capacity, block=32, cost=None):
        self.capacity, self.block, self.cost = capacity, block, cost or Cost()
        self.root, self.t, self.hits, self.peak = Block((), None, 0), 0, [], 0

    def match(self, key):
        node, visited, at = self.root, [], 0
        while at < len(key):
            block = tuple(key[at : at + self.block])
            child = node.children.get(block) if len(block) == self.block else None
            partial = child is None
            if partial:
                fitting = [c for k, c in node.children.items() if len(k) < self.block and block[: len(k)] == k]
                if not fitting:
                    break
                child = fitting[0]
            child.ts = self.t
            visited.append(child)
            node, at = child, at + len(child.key)
            if partial:
                break
        return visited

    def request(self, inp, out):
        seq = list(inp) + list(out)
        self.t += 1
        hit = sum(len(n.key) for n in self.match(list(inp)))
        self.hits.append(hit)
        self.t += 2
        missing = len(seq) - self.block * (1 + len(self.match(seq)))
        need = missing / self.block * self.cost.checkpoint + self.cost.kv(missing)
        size = self.bytes()
        if size + need > self.capacity:
            self.t += 1
            self.evict(size + need - self.capacity)
        self.insert(seq)
        self.peak = max(self.peak, self.bytes())
        return hit

    def evict(self, wanted):
        leaves = [n for n in self.nodes() if not n.children]
        heapq.heapify(leaves)
        freed = 0
        while freed < wanted and leaves:
            victim = heapq.heappop(leaves)
            freed += self.cost.checkpoint + self.cost.kv(len(victim.key))
            del victim.parent.children[victim.key]
            if not victim.parent.children and victim.parent is not self.root:
                heapq.heappush(leaves, victim.parent)

    def insert(self, key):
        node, at = self.root, 0
        while at < len(key):
            block = tuple(key[at : at + self.block])
            child = node.children.get(block)
            if child is None:
                fitting = [c for k, c in node.children.items() if len(k) < self.block and block[: len(k)] == k]
                if fitting:
                    child = fitting[0]
                    del node.children[child.key]
                    child.key = block
                else:
                    child = Block(block, node, self.t)
                node.children[block] = child
            child.ts = self.t
            node, at = child, at + len(block)
