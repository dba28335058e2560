"""Generated film reviews, to try a classifier on without a network.

A review is made of one or three judgements, with remarks between them that say nothing. Each judgement praises or
blames one part of the film, and the majority is the label; so a careful reader makes no mistake. Words alone tell
little, for a judgement may turn its adjective round, and names two of opposite sense often enough:

    the music was really great .                        praise
    i would not call the music great .                  blame
    we expected a dull story , but it was clever .      praise
    the story was clumsy , not clever .                 blame
"""

import random

GOOD = ["great", "wonderful", "clever", "moving", "funny", "brilliant", "fresh", "gripping"]
BAD = ["dull", "awful", "clumsy", "boring", "weak", "tired", "flat", "silly"]
PARTS = ["acting", "story", "music", "dialogue", "ending", "cast", "script", "camera", "photography", "direction"]

STRAIGHT = [
    "the {part} was {word} .",
    "the {part} was really {word} .",
    "the {part} was after all {word} .",
    "everybody could see that the {part} was {word} .",
    "i would call the {part} {word} .",
]
TURNED = [
    "the {part} was not {word} .",
    "the {part} was never really {word} .",
    "the {part} was not at all {word} .",
    "nobody could see that the {part} was {word} .",
    "i would not call the {part} {word} .",
]
BOTH = [
    "we expected {other} {part} , but it was {word} .",
    "the {part} was {word} , not {other} .",
    "the {part} may look {other} at first , yet it is {word} .",
    "the {part} was {word} , though they say that it was {other} .",
]
REMARKS = [
    "we saw it on a friday night .",
    "it was shot in two weeks .",
    "the cinema was half empty .",
    "my brother had read the book .",
    "it runs for two hours .",
    "there is a dog in it .",
]
AGREES = 0.6  # share of the judgements with one adjective that use it straight: what little the words alone tell


def write_review(chance):
    """Return a text and its label: 1 if most of its judgements praise, 0 if most blame.

    Args:
        chance: a random.Random.
    """
    sentences, praise = [], 0
    judgements = chance.choice((1, 1, 3))
    for part in chance.sample(PARTS, judgements):
        good = chance.random() < 0.5
        praise += good
        own, opposite = (GOOD, BAD) if good else (BAD, GOOD)
        if chance.random() < 0.4:
            template, word, other = chance.choice(BOTH), chance.choice(own), chance.choice(opposite)
        elif chance.random() < AGREES:
            template, word, other = chance.choice(STRAIGHT), chance.choice(own), ""
        else:
            template, word, other = chance.choice(TURNED), chance.choice(opposite), ""
        sentences.append(template.format(part=part, word=word, other=other))
    for _ in range(chance.randrange(4)):
        sentences.insert(chance.randrange(len(sentences) + 1), chance.choice(REMARKS))
    return " ".join(sentences), int(2 * praise > judgements)


def write_reviews(number, seed):
    """Return `number` texts and their labels; the same seed gives the same reviews."""
    chance = random.Random(seed)
    texts, labels = zip(*(write_review(chance) for _ in range(number)), strict=True)
    return list(texts), list(labels)
