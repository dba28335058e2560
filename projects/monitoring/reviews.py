"""Film reviews and what may come in their place: texts for the full scale.

IMDB (A. Maas and others, 2011), SST-2 (R. Socher and others, 2013) and AG News (X. Zhang and others, 2015), from the
folder that COURSE_DATA names, else by `datasets` from the hub.
"""

import csv
import re
from collections import Counter

import numpy as np
import torch
from torch import nn

from common.data import mirror
from common.data.text import imdb

STATISTICS = ("words", "word length", "unknown", "rare", "capitals", "punctuation", "digits")
WATCHED = (*STATISTICS, "confidence", "class")
SHORT = 30  # words


def load():
    """Return {name: (texts, labels)}: train, imdb (test), sst2, ag_news (labels: topics), and two of them short."""
    found = {"train": _mixed(*imdb("train"), 0), "imdb": _mixed(*imdb("test"), 1)}
    found["sst2"], found["ag_news"] = _mixed(*_sst2(), 2), _mixed(*_ag_news(), 3)
    for name in ("imdb", "ag_news"):
        long = [(text, label) for text, label in zip(*found[name], strict=True) if len(words_of(text)) >= SHORT]
        found[f"short {name}"] = [shortened(text) for text, _ in long], [label for _, label in long]
    return found


def shortened(text):
    """Return the first words of a text in lower case."""
    return " ".join(re.findall(r"[a-z']+", text.lower())[:SHORT])


def _mixed(texts, labels, seed):
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order], [int(labels[i]) for i in order]


def _sst2():
    folder = mirror()
    if folder is None:
        from datasets import load_dataset

        rows = [*load_dataset("stanfordnlp/sst2", split="validation"), *load_dataset("stanfordnlp/sst2", split="train")]
        rows = rows[:4000]
    else:
        rows = []
        for part in ("dev", "test"):
            with open(folder / "sst2" / f"{part}.tsv", encoding="utf-8") as lines:
                rows += csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [row["sentence"].strip() for row in rows], [int(row["label"]) for row in rows]


def _ag_news():
    folder = mirror()
    if folder is None:
        from datasets import load_dataset

        rows = load_dataset("fancyzhx/ag_news", split="test")
        return [row["text"] for row in rows], [row["label"] for row in rows]
    with open(folder / "ag_news" / "test.csv", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    return [f"{title} {text}" for _, title, text in rows], [int(number) - 1 for number, _, _ in rows]


def words_of(text):
    """Return the words of a text, in lower case."""
    return re.findall(r"[a-z']+", text.lower().replace("<br />", " "))


class Reader(nn.Module):
    """The mean of word vectors, a hidden layer, two classes."""

    def __init__(self, vocabulary, size=64):
        """Take {word: number}; 0 stands for all other words."""
        super().__init__()
        self.vocabulary = vocabulary
        self.embed = nn.EmbeddingBag(len(vocabulary) + 1, size, mode="mean")
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 2))

    def encode(self, texts):
        """Return the words of all texts as numbers, one after another, and where each text begins."""
        numbers = [[self.vocabulary.get(word, 0) for word in words_of(text)] or [0] for text in texts]
        starts = np.cumsum([0, *map(len, numbers[:-1])])
        return torch.tensor(np.concatenate(numbers)), torch.tensor(starts)

    def forward(self, numbers, starts):
        """Return logits (B, 2)."""
        return self.head(self.embed(numbers, starts))

    @torch.no_grad()
    def answer(self, texts):
        """Return the classes, the confidences, and all that is watched (N, F), as `WATCHED` names it."""
        self.eval()
        batches = [texts[start : start + 500] for start in range(0, len(texts), 500)]
        p = torch.cat([self(*self.encode(batch)).softmax(-1) for batch in batches]).double().numpy()
        rows = np.array([self.statistics(text) for text in texts])
        return p.argmax(1), p.max(1), np.column_stack([rows, p.max(1), p.argmax(1)])

    def statistics(self, text):
        """Return seven numbers about a text: log of its words, their mean length, and five shares."""
        text = text.replace("<br />", " ")
        words, letters = words_of(text), max(len(text), 1)
        known = [self.vocabulary.get(word, 0) for word in words] or [0]
        shares = [sum(map(test, text)) / letters for test in (str.isupper, lambda c: c in ".,!?;:'\"-()", str.isdigit)]
        return [
            np.log1p(len(words)),
            np.mean([len(word) for word in words]) if words else 0.0,
            np.mean([number == 0 for number in known]),
            np.mean([number > 2000 for number in known]),
            *shares,
        ]


def train(texts, labels, words=20_000, epochs=6, seed=0):
    """Train a reader, with the most frequent words of the texts as its vocabulary."""
    torch.manual_seed(seed)
    counts = Counter(word for text in texts for word in words_of(text))
    reader = Reader({word: number for number, (word, _) in enumerate(counts.most_common(words), start=1)})
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-3)
    numbers, starts = reader.encode(texts)
    pieces, targets = torch.tensor_split(numbers, starts[1:]), torch.tensor(labels)
    for _ in range(epochs):
        reader.train()
        for batch in torch.randperm(len(pieces)).split(64):
            chosen = [pieces[i] for i in batch]
            begins = torch.tensor(np.cumsum([0, *map(len, chosen[:-1])]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(reader(torch.cat(chosen), begins), targets[batch]).backward()
            optimizer.step()
    return reader


def power(detector, calm, other, share, rng, windows=100):
    """Return in which share of windows a share of another domain is seen.

    Args:
        detector: a `Detector`.
        calm: rows (N, F) of the old domain.
        other: rows (M, F) of the new one.
        share: of the rows of a window that are the new domain's.
        rng: a `numpy.random.Generator`.
        windows: how many are tried.
    """
    hits = 0
    for _ in range(windows):
        new = rng.random(detector.size) < share
        window = calm[rng.integers(len(calm), size=detector.size)]
        window[new] = other[rng.integers(len(other), size=new.sum())]
        hits += (detector.ratios(window) > 1).any()
    return hits / windows
