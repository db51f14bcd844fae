"""From a packed corpus to numbered tokens: byte-pair encoding, documents, the held-out part.

Needs NumPy only. The file that `write_tokens` makes holds no text, but the vocabulary and the
documents' tokens.
"""

from __future__ import annotations

import collections
import hashlib
import heapq
import io
import json
import lzma
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

END = 0  # the token between documents; tokens 1 to 256 are the bytes
PIECE = re.compile(rb" ?[A-Za-z\x80-\xff]+|[0-9]| ?[^\sA-Za-z0-9\x80-\xff]+|\s+")
HELD_OUT_SHARE = 10  # one document of ten is held out, by a hash of its path


@dataclass
class Tokens:
    """Documents as tokens. Document i is tokens[starts[i] : starts[i + 1]], its END token included."""

    tokens: np.ndarray  # uint16 [tokens]
    starts: np.ndarray  # int64 [documents + 1]
    domain: np.ndarray  # uint8 [documents], index into domains
    held_out: np.ndarray  # bool [documents]
    num_bytes: np.ndarray  # int64 [documents]
    domains: list[str]
    vocabulary: int
    card: dict  # of pack_corpus.py


def learn_merges(pieces: collections.Counter, vocabulary: int) -> list[tuple[int, int]]:
    """Byte-pair encoding: joins the commonest pair again and again; ties go to the smaller pair."""
    words = [[byte + 1 for byte in piece] for piece in pieces]
    times = list(pieces.values())
    pairs: collections.Counter = collections.Counter()
    where = collections.defaultdict(set)
    for index, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += times[index]
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while len(merges) < vocabulary - 257 and heap:
        count, pair = heapq.heappop(heap)
        if pairs[pair] != -count:  # an old entry of the heap
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -count < 2:
            break
        new = 257 + len(merges)
        merges.append(pair)
        changed = set()
        for index in sorted(where.pop(pair)):
            old = words[index]
            word, at = [], 0
            while at < len(old):
                if at + 1 < len(old) and (old[at], old[at + 1]) == pair:
                    word.append(new)
                    at += 2
                else:
                    word.append(old[at])
                    at += 1
            for neighbour in zip(old, old[1:]):
                pairs[neighbour] -= times[index]
            for neighbour in zip(word, word[1:]):
                pairs[neighbour] += times[index]
                where[neighbour].add(index)
                changed.add(neighbour)
            words[index] = word
        del pairs[pair]
        for neighbour in sorted(changed):
            heapq.heappush(heap, (-pairs[neighbour], neighbour))
    return merges


class Encoder:
    """Text to tokens, piece by piece; a piece is encoded once and then looked up."""

    def __init__(self, merges: list[tuple[int, int]]):
        self.rank = {pair: 257 + index for index, pair in enumerate(merges)}
        self.known: dict[bytes, list[int]] = {}

    def piece(self, piece: bytes) -> list[int]:
        word = [byte + 1 for byte in piece]
        while len(word) > 1:
            best = min((self.rank.get(pair, 1 << 30), at) for at, pair in enumerate(zip(word, word[1:])))
            if best[0] == 1 << 30:
                break
            word[best[1] : best[1] + 2] = [best[0]]
        return word

    def __call__(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        for piece in PIECE.findall(text):
            found = self.known.get(piece)
            if found is None:
                found = self.known[piece] = self.piece(piece)
            tokens += found
        return tokens


def prepare(corpus: Path, vocabulary: int) -> Tokens:
    """Reads a corpus of pack_corpus.py. The vocabulary is learnt on the training documents alone."""
    documents: list[tuple[str, str, bytes]] = []
    card: dict = {}
    with tarfile.open(corpus) as archive:
        for entry in archive:
            stream = archive.extractfile(entry)
            if stream is None:
                continue
            if entry.name == "card.json":
                card = json.load(stream)
            else:
                documents.append((entry.name.split("/", 1)[0], entry.name, stream.read()))
    if not documents:
        raise SystemExit(f"{corpus}: found no documents, expected an archive of pack_corpus.py")
    held_out = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % HELD_OUT_SHARE == 0
                for _, name, _ in documents]
    pieces: collections.Counter = collections.Counter()
    for out, (_, _, text) in zip(held_out, documents):
        if not out:
            pieces.update(PIECE.findall(text[: 40_000]))
    common = collections.Counter({p: n for p, n in pieces.items() if n > 2 and len(p) <= 32})
    merges = learn_merges(common or pieces, vocabulary)
    encoder = Encoder(merges)
    domains = sorted({domain for domain, _, _ in documents})
    encoded = [np.array(encoder(text) + [END], dtype=np.uint16) for _, _, text in documents]
    return Tokens(
        tokens=np.concatenate(encoded),
        starts=np.concatenate([[0], np.cumsum([len(tokens) for tokens in encoded])]).astype(np.int64),
        domain=np.array([domains.index(domain) for domain, _, _ in documents], dtype=np.uint8),
        held_out=np.array(held_out),
        num_bytes=np.array([len(text) for _, _, text in documents], dtype=np.int64),
        domains=domains,
        vocabulary=257 + len(merges),
        card=card,
    )


def write_tokens(tokens: Tokens, path: Path) -> None:
    plain = io.BytesIO()
    np.savez(plain, tokens=tokens.tokens, starts=tokens.starts, domain=tokens.domain, held_out=tokens.held_out,
             num_bytes=tokens.num_bytes, domains=np.array(tokens.domains), vocabulary=tokens.vocabulary,
             card=np.array(json.dumps(tokens.card)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1}]
    path.write_bytes(lzma.compress(plain.getvalue(), filters=filters))


def read_tokens(path: Path) -> Tokens:
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as data:
        return Tokens(tokens=data["tokens"], starts=data["starts"], domain=data["domain"],
                      held_out=data["held_out"], num_bytes=data["num_bytes"],
                      domains=[str(name) for name in data["domains"]], vocabulary=int(data["vocabulary"]),
                      card=json.loads(str(data["card"])))
