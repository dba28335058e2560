"""Trains the classifier of model.py in one process or, with DDP written by hand, in several; resumes; exports.

    python train.py --out runs/one
    torchrun --standalone --nproc-per-node 2 train.py --out runs/two
    python train.py --data imdb --out runs/imdb            (the real reviews; see --help for all options)

A run that was killed goes on from its last checkpoint when the same command is given again. Complete the TODOs in
this order; checkpoint_project.ipynb explains each of them and checks it. What has no TODO above it is given.

`rank` is the number of a process, 0 <= rank < world; `world` is the number of processes.
"""

import argparse
import gc
import json
import math
import os
import random
import time
from pathlib import Path

import model as own
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model import PAD, TextClassifier
from torch import nn

# -- optimization -----------------------------------------------------------------------------------------


# TODO warmup-cosine  (5 points, ~10 min)
def warmup_cosine(step, *, max_lr, min_lr, warmup, total):
    """Learning rate of one step: a straight line up, half a cosine down.

    Args:
        step: 0, 1, 2, ...
        max_lr: what is reached at step `warmup`.
        min_lr: what is reached at step `total`, and kept from there on.
        warmup: steps of the straight line, which begins at 0 at step 0. May be 0: then step 0 has max_lr.
        total: the step at which the cosine has arrived; larger than `warmup`.

    Returns:
        The learning rate, a float.
    """
    raise NotImplementedError("warmup-cosine")


# TODO clip-gradients  (5 points, ~10 min)
def clip_gradients(parameters, max_norm):
    """Make the gradient of all parameters together no longer than `max_norm`, in place.

    Seen as one long vector, it is multiplied by max_norm / (norm + 1e-6) where its norm is larger than max_norm, and
    left as it is otherwise.

    Args:
        parameters: an iterable of parameters; those without a gradient (None) are passed over, one at least has one.
        max_norm: a positive number.

    Returns:
        The norm before, a tensor without axes.
    """
    raise NotImplementedError("clip-gradients")


# TODO adamw  (8 points, ~30 min)
class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2); equal to torch.optim.AdamW.

    For each parameter p with gradient g, at its step t = 1, 2, ...:

        p <- p - lr * weight_decay * p
        m <- beta1 * m + (1 - beta1) * g             v <- beta2 * v + (1 - beta2) * g²
        p <- p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    m and v begin at 0. Parameters without a gradient (None) stay as they are.

    Args:
        params: parameters, or groups of them, as every torch.optim.Optimizer takes them.
        lr, betas, eps, weight_decay: the options of each group that does not bring its own. They are read anew in
            each step, so that a schedule can change group["lr"].
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        """Hand the parameters and the options to torch.optim.Optimizer."""
        raise NotImplementedError("adamw")

    @torch.no_grad()
    def step(self, closure=None):
        """Change all parameters by one step.

        What is remembered between steps lies in self.state[p], from where state_dict() takes it: t, m and v, under
        any names.

        Args:
            closure: a function that computes the loss anew, with gradients; or None.

        Returns:
            What the closure returned, or None.
        """
        raise NotImplementedError("adamw")


# -- several processes ------------------------------------------------------------------------------------


# TODO shard  (7 points, ~20 min)
def shard(samples, rank, world, epoch, seed):
    """Say which samples a rank trains on in an epoch, in which order.

    All ranks shuffle the numbers 0 ... samples - 1 in the same way, by a generator of its own that is seeded with
    seed + epoch (torch's global one is not touched), and deal them out like cards: rank 0 gets the first, rank 1 the
    second, and so on around. So the first k samples of all ranks together are the first k * world of the one order.

    When `samples` is no multiple of `world`, the order goes on with its own beginning until all ranks have equally
    many.

    Args:
        samples: how many there are, at least `world`.
        rank, world: which rank, of how many.
        epoch: 0, 1, 2, ...
        seed: the seed of the training.

    Returns:
        A list of ceil(samples / world) integers.
    """
    raise NotImplementedError("shard")


# TODO broadcast-weights  (4 points, ~10 min)
def broadcast_weights(model, broadcast):
    """Give the model of every rank the weights of rank 0. All ranks call this before the first step.

    Args:
        model: a module. Its parameters, frozen ones too, and its buffers are overwritten in place; what is shared by
            two layers stays shared.
        broadcast: `broadcast(tensor, 0)` overwrites the tensor with rank 0's. It returns only when all ranks have
            called it, so all have to call it for the same tensors in the same order. It is
            torch.distributed.broadcast.
    """
    raise NotImplementedError("broadcast-weights")


# TODO average-gradients  (7 points, ~25 min)
def average_gradients(model, world, all_reduce):
    """Replace each gradient by its mean over all ranks: what DistributedDataParallel does in its backward pass.

    Args:
        model: a module after `backward`. On some ranks a parameter may have no gradient (None), because its layer was
            not used there: it counts as 0, and afterwards the parameter has a gradient on all ranks. Frozen parameters
            (requires_grad is False) take no part.
        world: how many ranks there are.
        all_reduce: `all_reduce(tensor)` replaces the tensor, in place, by its sum over all ranks. It returns only
            when all ranks have called it, so all have to call it for tensors of the same shapes in the same order.
            Each call has its price, so all gradients travel together, as one long tensor, or in two or three pieces.
            It is torch.distributed.all_reduce.
    """
    raise NotImplementedError("average-gradients")


# -- checkpoints ------------------------------------------------------------------------------------------


def generator_state():
    """Return the states of torch's generators in this process: tensors by the name of the device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_generator_state(states):
    """Set torch's generators in this process back to what `generator_state` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


# TODO save-checkpoint  (5 points, ~20 min)
def save_checkpoint(model, optimizer, step, out, generators=None):
    """Write all that a training needs to go on as if it had never stopped.

    The file is made by torch.save, of a dictionary:

        "model", "optimizer": their state_dict()
        "step": how many steps are done
        "generators": a list with a generator_state() for each rank

    Args:
        model, optimizer: what is trained, and by what.
        step: an integer.
        out: a path (text or Path), or a file object that is open for writing bytes. A path is written whole or not at
            all: whoever is killed while writing leaves the older checkpoint there as it was.
        generators: the states of all ranks, in their order; None stands for this process alone.
    """
    raise NotImplementedError("save-checkpoint")


# TODO load-checkpoint  (5 points, ~15 min)
def load_checkpoint(source, model, optimizer, rank=0):
    """Take back what save_checkpoint has written.

    The file may come from anywhere, so nothing in it is executed: torch.load with weights_only=True.

    Args:
        source: a path, or a file object that is open for reading bytes.
        model, optimizer: are overwritten. The model may be on another device than the one that was saved.
        rank: whose generator state this process takes back.

    Returns:
        How many steps were done.
    """
    raise NotImplementedError("load-checkpoint")


# -- export -----------------------------------------------------------------------------------------------


# TODO export  (6 points, ~25 min)
def export(model, path, metadata):
    """Write the model as one ONNX file that takes batches of any size and texts of any length.

    The file has one input, `tokens`, int64 (batch, length), both free, and one output, `logits`, float32 (batch,
    classes). It computes what the model computes in evaluation mode. Afterwards the model is in the mode in which it
    was.

    Args:
        model: on the CPU.
        path: where to write. All weights go into this one file, none into a second one beside it.
        metadata: texts by name, which the file carries along as its `metadata_props`.
    """
    raise NotImplementedError("export")


# -- texts ------------------------------------------------------------------------------------------------


def read_texts(data):
    """Return the texts and labels (0 or 1) of the training set, shuffled: generated reviews, or those of IMDB."""
    if data == "imdb":
        from common.data import text  # the loaders take a moment

        texts, labels = text.imdb("train")
    else:
        from reviews import write_reviews

        texts, labels = write_reviews(16000, seed=0)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    return [texts[i] for i in order], [labels[i] for i in order]


def make_tokenizer(texts, vocab):
    """Learn a byte-pair encoding of at most `vocab` tokens, 0 for padding and 1 for what is unknown; lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    steps = normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("<br />", " "), *steps])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]"]
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, limit_alphabet=100, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def cut(ids, length):
    """Shorten a long text to its first quarter and its last three: a reviewer's verdict stands at the end."""
    return ids if len(ids) <= length else [*ids[: length // 4], *ids[len(ids) - (length - length // 4) :]]


def prepare(options, rank):
    """Return the tokenizer's JSON, and tokens and labels of all texts, held-out ones first; rank 0 makes them."""
    file = Path(options.out).parent / f"texts-{options.data}-{options.vocab}.pt"
    if rank == 0 and not file.exists():
        texts, labels = read_texts(options.data)
        held_out = len(texts) // 10
        tokenizer = make_tokenizer(texts[held_out:], options.vocab)
        ids = [one.ids or [1] for one in tokenizer.encode_batch(texts)]
        made = {
            "tokens": torch.tensor([one for text in ids for one in text], dtype=torch.int32),
            "lengths": [len(text) for text in ids],
            "labels": torch.tensor(labels),
            "held_out": held_out,
            "vocab": tokenizer.get_vocab_size(),
        }
        half = file.with_name(f"{file.name}.{os.getpid()}")
        torch.save(made | {"tokenizer": tokenizer.to_str()}, half)
        half.replace(file)
    if dist.is_initialized():
        dist.barrier()
    prepared = torch.load(file, weights_only=True)
    prepared["tokens"] = prepared["tokens"].split(prepared["lengths"])
    return prepared["tokenizer"], prepared


def in_batches(order, tokens, size, window, seed):
    """Cut an order of samples into batches; within `window` batches, texts of about equal length come together."""
    found = []
    for begin in range(0, len(order), size * window):
        part = order[begin : begin + size * window]
        if window > 1:
            part = sorted(part, key=lambda i: len(tokens[i]))
        found += [part[i : i + size] for i in range(0, len(part), size)]
    if window > 1:
        random.Random(seed).shuffle(found)
    return found


def padded(texts, length, drop=0.0):
    """Stack tokens of several texts (B, T), after leaving out each token with probability `drop`."""
    rows = []
    for text in texts:
        kept = text[torch.rand(len(text)) >= drop] if drop else text
        rows.append(torch.tensor(cut(kept.tolist(), length) or [1]))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).long()


# -- the training -----------------------------------------------------------------------------------------


def parse(arguments=None):
    """Read the options of the command line, or of a list of texts."""
    parser = argparse.ArgumentParser(description="Trains a Transformer that classifies reviews.")
    add = parser.add_argument
    add("--out", required=True, help="a folder for checkpoint, weights, log and TensorBoard")
    add("--data", choices=("quick", "imdb"), default="quick", help="generated reviews, or the real ones")
    add("--vocab", type=int, default=16000, help="most tokens of the tokenizer")
    add("--d-model", type=int, default=64)
    add("--heads", type=int, default=4)
    add("--layers", type=int, default=2)
    add("--pairs", type=int, default=0, help="rows for pairs of neighbouring tokens, see PairEmbedding; 0: none")
    add("--max-length", type=int, default=512, help="tokens of a text; of longer ones the middle is left out")
    add("--dropout", type=float, default=0.1)
    add("--token-dropout", type=float, default=0.0, help="share of the tokens left out in training")
    add("--epochs", type=int, default=4)
    add("--steps", type=int, default=0, help="stop after this many steps of the schedule")
    add("--batch", type=int, default=64, help="texts in a step, of all processes together")
    add("--window", type=int, default=50, help="batches within which texts are sorted by length; 1: not at all")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--clip", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=100, help="steps from one checkpoint to the next")
    add("--precision", choices=("float32", "bfloat16"), default="float32")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=device, help="a GPU for each process, or the CPU for all")
    add("--fused", action="store_true", help="torch's own attention kernel instead of yours: equal, but faster")
    add("--again", metavar="OUT", help="then train once more, from the beginning, into this folder: to compare with")
    add("--ddp", action="store_true", help="let torch's DistributedDataParallel do --again, instead of your functions")
    return parser.parse_args(arguments)


def start_processes(options):
    """Join the other processes, if torchrun has started several; return rank, world and device."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = options.device == "cuda"
    if cuda and torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        raise SystemExit(
            f"train.py: there are fewer GPUs ({torch.cuda.device_count()}) than processes; "
            "start as many as GPUs, or give --device cpu"
        )
    if options.batch % world:
        raise SystemExit(f"train.py: --batch {options.batch} cannot be divided among {world} processes")
    if cuda:
        torch.cuda.set_device(local)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return rank, world, torch.device("cuda", local) if cuda else torch.device("cpu")


def demand_same(options):
    """Refuse to go on with a training that was begun with other options."""
    file = Path(options.out, "options.json")
    wanted = {
        name: value
        for name, value in vars(options).items()
        if name not in ("out", "steps", "save_every", "device", "fused", "again", "ddp")
    }
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else wanted
    other = [f"{name} was {found.get(name)}, now {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise SystemExit(
            f"train.py: {options.out} holds a training with other options ({'; '.join(other)}). "
            "Give this one a folder of its own with --out, or delete that one."
        )
    file.write_text(json.dumps(wanted), encoding="utf-8")


class PairEmbedding(nn.Module):
    """Embeddings that also know the token before: words(b) + up(pairs(a, b)), in the place of a model's `embed`.

    There are far too many pairs (a, b) to keep a vector for each. So a number is computed from a and b, which says
    which of some rows is theirs; pairs that meet in a row share it (Joulin et al. 2017).
    """

    def __init__(self, words, pairs, size=16):
        """Keep the embeddings `words`, and make `pairs` rows of `size` features."""
        super().__init__()
        self.words, self.pairs = words, nn.Embedding(pairs, size)
        nn.init.normal_(self.pairs.weight, std=0.05)
        self.up = nn.Linear(size, words.embedding_dim, bias=False)

    def forward(self, tokens):
        """Return (B, T, D) for tokens (B, T); before the first one stands padding."""
        before = F.pad(tokens, (1, 0))[:, :-1]
        rows = (before * self.words.num_embeddings + tokens) % self.pairs.num_embeddings
        return self.words(tokens) + self.up(self.pairs(rows))


def make_model(options, vocab):
    """Build the classifier that the options describe."""
    size = options.d_model
    model = TextClassifier(vocab, size, options.heads, options.layers, 2 * size, options.max_length, options.dropout)
    if options.pairs:
        model.embed = PairEmbedding(model.embed, options.pairs)
    return model


def fuse():
    """Let model.py compute attention by torch's kernel, which never stores the weights of all pairs of tokens."""
    own.attention = lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@torch.no_grad()
def predict(model, tokens, options, size=64):
    """Return the logits of texts, one row for each, in evaluation mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    logits = torch.zeros(len(tokens), 2)
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size]
        logits[chosen] = model(padded([tokens[i] for i in chosen], options.max_length).to(device)).float().cpu()
    model.train(training)
    return logits


class Log:
    """Writes to the screen, to log.txt and to TensorBoard; on rank 0 only."""

    def __init__(self, options, rank):
        """Open the log of a training, below what an interrupted run has written."""
        self.rank = rank
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds

            self.file = Path(options.out, "log.txt").open("a", encoding="utf-8")  # noqa: SIM115
            self.board = SummaryWriter(str(Path(options.out, "tensorboard")))

    def say(self, text):
        """Write one line."""
        if self.rank == 0:
            print(text, flush=True)
            print(text, file=self.file, flush=True)

    def scalars(self, step, values):
        """Write numbers of one step."""
        if self.rank == 0:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self):
        """Write what is left."""
        if self.rank == 0:
            self.file.close()
            self.board.close()


def main(arguments=None):
    """Train, or go on with a training; return the model, in evaluation mode, and what was measured."""
    options = parse(arguments)
    rank, world, device = start_processes(options)
    model, results = train_one(options, rank, world, device)
    if options.again:
        train_one(argparse.Namespace(**vars(options) | {"out": options.again}), rank, world, device, options.ddp)
    if world > 1:
        dist.destroy_process_group()
    return model, results


def train_one(options, rank, world, device, ddp=False):
    """Do a whole training in this rank; return the model and what was measured."""
    torch.manual_seed(options.seed + 1000 * rank)  # dropout has to differ among the ranks; so the first weights do, too
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if rank == 0:
        demand_same(options)
    _, data = prepare(options, rank)
    if options.fused:
        fuse()
    model = make_model(options, data["vocab"]).to(device)
    forward = model
    if world > 1 and ddp:
        forward = nn.parallel.DistributedDataParallel(model)
    elif world > 1:
        broadcast_weights(model, dist.broadcast)
    optimizer = AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay)
    log = Log(options, rank)
    size = sum(p.numel() for p in model.parameters())
    log.say(f"process {os.getpid()} is rank 0 of {world}; {size:,} parameters, {device}")
    seconds = run(options, model, forward, optimizer, data, log, rank, world)
    results = {"seconds": seconds}
    model.eval()
    if rank == 0:
        torch.save(model.state_dict(), Path(options.out, "weights.pt"))
        held_out = data["held_out"]
        right = predict(model, data["tokens"][:held_out], options).argmax(-1) == data["labels"][:held_out]
        results["held-out accuracy"] = right.float().mean().item()
        log.say(
            f"done after {seconds:.0f} s; accuracy on {held_out} held-out texts: {results['held-out accuracy']:.4f}"
        )
        Path(options.out, "results.json").write_text(json.dumps(results), encoding="utf-8")
    log.close()
    return model, results


def run(options, model, forward, optimizer, data, log, rank, world):
    """Do the steps that are left, calling `forward`, the model or what stands around it; return their seconds."""
    held_out, size = data["held_out"], options.batch // world
    tokens, labels = data["tokens"][held_out:], data["labels"][held_out:]
    device = next(model.parameters()).device
    per_epoch = math.ceil(math.ceil(len(tokens) / world) / size)
    total = per_epoch * options.epochs
    schedule = {"max_lr": options.lr, "min_lr": 0.02 * options.lr, "warmup": total // 10, "total": total}
    checkpoint, step, began = Path(options.out, "checkpoint.pt"), 0, time.perf_counter()
    if checkpoint.exists():
        step = load_checkpoint(checkpoint, model, optimizer, rank)
        log.say(f"goes on after step {step} of {total}")
    last = min(total, options.steps or total)
    recent = []
    model.train()
    while step < last:
        epoch = step // per_epoch
        order = shard(len(tokens), rank, world, epoch, options.seed)
        for chosen in in_batches(order, tokens, size, options.window, options.seed + epoch)[step % per_epoch :]:
            lr = warmup_cosine(step + 1, **schedule)  # + 1: a step with a rate of 0 would be wasted
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = padded([tokens[i] for i in chosen], options.max_length, options.token_dropout).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                logits = forward(batch)
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            if world > 1 and forward is model:
                average_gradients(model, world, dist.all_reduce)
            norm = clip_gradients(model.parameters(), options.clip)
            optimizer.step()
            step += 1
            if not math.isfinite(loss.item()):
                raise SystemExit(f"train.py: the loss is {loss.item()} at step {step}; try a smaller --lr")
            log.scalars(step, {"train/loss": loss.item(), "train/lr": lr, "train/gradient norm": norm.item()})
            recent = [*recent[-19:], loss.item()]  # one batch says little: texts of one length are alike
            if step % 20 == 0:
                mean = sum(recent) / len(recent)
                log.say(f"step {step:5d} of {total}  mean loss {mean:.4f}  lr {lr:.2e}  norm {norm.item():.2f}")
            if step % options.save_every == 0 or step == last:
                keep(checkpoint, model, optimizer, step, log, rank, world)
            if step == last:
                break
    return time.perf_counter() - began


def keep(checkpoint, model, optimizer, step, log, rank, world):
    """Let rank 0 write a checkpoint, with the states of all ranks' generators."""
    states = [generator_state()]
    if world > 1:
        states = [None] * world
        dist.all_gather_object(states, generator_state())
    if rank == 0:
        save_checkpoint(model, optimizer, step, checkpoint, states)
        log.say(f"checkpoint after step {step}")


if __name__ == "__main__":
    main()
    gc.freeze()  # or Python looks through all objects of PyTorch once more before it ends, for a second
