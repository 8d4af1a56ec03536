"""Train the motion demo on one CPU core: python -m examples.motion.train --out build/motion.

Stage 1 teaches trunk and text shape, colour, place and size from single frames. Stage 2 copies the
branch's spatial layers from the trunk, as the paper does (section 3.3), and trains on clips, each
also reversed in time with its label reversed, from easy to hard. With --trunk-only stage 2 trains
the mean-pooled trunk alone: the baseline. A run that is cut off goes on with the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.motion import clips
from stan_infer.checkpoints.load import save_model
from stan_infer.checkpoints.presets import preset
from stan_infer.config import StanConfig
from stan_infer.network.model import Stan
from stan_infer.text.tokenizer import tokenize

SCALE = 20.0  # of cosines in the loss; 1 / the config's temperature
# The baseline never keeps up; its clips get harder from the step at which the full model's did, so
# that both see the same clips.
TRUNK_WAITS = 400
COLUMNS, ROWS, SIZES = ("left", "middle", "right"), ("top", "centre", "bottom"), (9.0, 11.0)
PLACES = [f"a shape at the {row} {column}" for row in ROWS for column in COLUMNS]
QUESTIONS: dict[str, list[str]] = {
    "shape": [f"a {s}" for s in clips.SHAPES],
    "colour": [f"a {c} shape" for c in clips.COLOUR_NAMES],
    "place": PLACES,
    "size": [f"a {s} shape" for s in ("small", "medium", "large")],
    "motion": clips.prompts(),
    "caption": clips.captions(),
}
FRAME_QUESTIONS = ("shape", "colour", "place", "size")
CLIP_WEIGHTS = {"caption": 1.0, "motion": 1.0, "shape": 0.5, "colour": 0.5}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run depends on besides the code."""

    seed: int = 0
    trunk_only: bool = False
    frame_steps: int = 400
    images: int = 128  # of a step of stage 1
    frame_rate: float = 1e-3
    clip_steps: int = 1200
    clips: int = 12  # drawn in a step of stage 2, and as many reversed
    clip_rate: float = 7e-4
    warm_up: int = 100
    trunk_share: float = 0.3  # of the learning rate, in stage 2
    decay: float = 0.05
    harder: float = 1 / 250  # added to the difficulty per step while the model keeps up
    keeps_up: float = 0.7  # running motion accuracy


@dataclasses.dataclass
class Run:
    """A run under way; all of it but the texts is saved for a resume."""

    model: Stan
    recipe: Recipe
    texts: dict[str, Tensor]
    stage: int = 1
    step: int = 0
    difficulty: float = 0.0
    accuracy: float = 0.1
    seconds: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """Return stage and step, which order."""
        return self.stage, self.step


def smooth_table(rng: np.random.Generator, axes: list[np.ndarray], width: int) -> np.ndarray:
    """Return products of low cosines of the axes through a random projection [n, width], std 1.

    Attention can form differences of time or place from it at once; from independent random rows
    it did not in 1,200 steps.
    """
    waves = [[np.cos(math.pi * k * axis) for k in range(4)] for axis in axes]
    basis = waves[0]
    for more in waves[1:]:
        basis = [a * b for a in basis for b in more]
    kept = np.stack(basis[1:], 1)
    table = kept @ rng.standard_normal((kept.shape[1], width))
    return table / table.std()


def init_weights(model: Stan, seed: int) -> None:
    """Fill every parameter: N(0, 1/fan_in) products, smooth position and time tables."""
    config, rng = model.config, np.random.default_rng([seed, 0])
    side = math.isqrt(config.patches)
    grid = (np.arange(side) + 0.5) / side
    y, x = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    time_axis = (np.arange(config.max_frames) + 0.5) / config.frames
    for name, p in model.named_parameters():
        noise = rng.standard_normal(tuple(p.shape))
        if name == "visual.positional_embedding":
            value = 0.5 * np.concatenate([noise[:1], smooth_table(rng, [y, x], config.width)])
        elif name == "branch.time_embedding":
            value = smooth_table(rng, [time_axis], config.width)
        elif name.endswith("bias"):
            value = np.zeros_like(noise)
        elif ".ln_" in f".{name}" or ".ln." in name:
            value = np.ones_like(noise)
        elif "embedding" in name:
            value = (0.5 if name == "visual.class_embedding" else 0.02) * noise
        else:
            into = p.shape[0] if name.endswith("proj") else math.prod(p.shape[1:])
            value = noise * into**-0.5
            if name.endswith("in_proj_weight"):
                value[: 2 * p.shape[1]] *= 1.5
            elif "out_proj" in name or "c_proj" in name:
                value *= 0.7
        with torch.no_grad():
            p.copy_(torch.from_numpy(value))


def used_words() -> np.ndarray:
    """Return the sorted ids of the word table's rows that the demo's sentences use."""
    return np.unique(tokenize([t for texts in QUESTIONS.values() for t in texts]))


def build(recipe: Recipe) -> tuple[Stan, dict[str, Tensor]]:
    """Return a fresh model whose word table holds only the used rows, and its token ids.

    Sorted ids keep the end token the largest, so pooling is the same; only used rows need
    gradients. Padding is cut off: behind the end token a causal tower does not see it.
    """
    words = used_words()
    config = dataclasses.replace(
        preset("stan-tiny"), vocab_size=len(words), temperature=1 / SCALE, context_length=32
    )
    model = Stan(config)
    init_weights(model, recipe.seed)
    texts = {}
    for name, sentences in QUESTIONS.items():
        ids = tokenize(sentences)
        length = int(ids.argmax(1).max()) + 1
        texts[name] = torch.from_numpy(np.searchsorted(words, ids[:, :length]))
    return model, texts


def full_model(small: Stan) -> Stan:
    """Return the model with the whole word table; unused rows get small random values."""
    config: StanConfig = dataclasses.replace(
        small.config, vocab_size=preset("stan-tiny").vocab_size
    )
    model = Stan(config)
    state = small.state_dict()
    rng = np.random.default_rng([2023, 1])
    table = 0.02 * rng.standard_normal((config.vocab_size, config.text_width), np.float32)
    table[used_words()] = state["token_embedding.weight"].numpy()
    model.load_state_dict(state | {"token_embedding.weight": torch.from_numpy(table)})
    return model.eval()


def encode_trunk(model: Stan, video: Tensor) -> Tensor:
    """uint8 [B, T, S, S, 3] -> [B, E]: CLIP's frames, mean-pooled, without the branch."""
    x = model.visual.tokens(model.normalize(video).flatten(0, 1))
    for block in model.visual.transformer.resblocks:
        x = block(x)
    features = model.visual.ln_post(x[:, 0]) @ model.visual.proj
    return features.unflatten(0, video.shape[:2]).mean(1)


def encode_clip(model: Stan, video: Tensor, trunk_only: bool) -> Tensor:
    """uint8 [B, T, S, S, 3] -> [B, E]."""
    return encode_trunk(model, video) if trunk_only else model.encode_video(video).mean(1)


def frame_batch(recipe: Recipe, step: int, bank: clips.Floats) -> tuple[Tensor, dict[str, Tensor]]:
    """Return single frames uint8 [n, 1, 64, 64, 3] and the answer to each frame question."""
    rng = np.random.default_rng([recipe.seed, 1, step])
    drawn = []
    for _ in range(recipe.images):
        level = clips.mix(clips.EASY, clips.FULL, rng.uniform())
        motion = int(rng.choice([0, 1, 2, 3, 4, 5, 9]))  # no clip that may begin unseen
        drawn.append(clips.draw_clip(rng, bank, level, motion, count=1))
    third = clips.SIDE / 3
    answers = {
        "shape": [c.shape for c in drawn],
        "colour": [c.colour for c in drawn],
        "place": [
            3 * min(2, max(0, int(c.centre[1] // third)))
            + min(2, max(0, int(c.centre[0] // third)))
            for c in drawn
        ],
        "size": [int(np.searchsorted(SIZES, c.radius)) for c in drawn],
    }
    pixels = torch.from_numpy(np.stack([c.frames for c in drawn]))
    return pixels, {k: torch.tensor(v) for k, v in answers.items()}


def clip_batch(run: Run, bank: clips.Floats) -> tuple[Tensor, dict[str, Tensor]]:
    """Return clips uint8 [2n, T, 64, 64, 3], the second half reversed, and their answers."""
    recipe = run.recipe
    rng = np.random.default_rng([recipe.seed, 2, run.step])
    drawn = []
    for i in range(recipe.clips):
        level = run.difficulty * (1.0 if i % 2 else rng.uniform())
        drawn.append(clips.draw_clip(rng, bank, clips.mix(clips.EASY, clips.FULL, level)))
    drawn += [c.reverse() for c in drawn]
    frames = run.model.config.frames
    pixels = np.stack([clips.sample_frames(c.frames, frames) for c in drawn])
    answers = {
        "caption": [c.caption_index for c in drawn],
        "motion": [c.motion for c in drawn],
        "shape": [c.shape for c in drawn],
        "colour": [c.colour for c in drawn],
    }
    return torch.from_numpy(pixels), {k: torch.tensor(v) for k, v in answers.items()}


def loss_of(
    run: Run, features: Tensor, answers: dict[str, Tensor], weights: dict[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of each question's sentences; captions also from text to clip in the batch."""
    v = F.normalize(features, dim=-1)
    total, accuracy = torch.zeros(()), {}
    for name, weight in weights.items():
        t = F.normalize(run.model.encode_text(run.texts[name]), dim=-1)
        logits = SCALE * v @ t.T
        loss = F.cross_entropy(logits, answers[name])
        if name == "caption":
            own = answers[name]
            same = (own[:, None] == own).float()  # a clip that blinks and its reverse share one
            loss = (loss + F.cross_entropy(logits[:, own].T, same / same.sum(1, True))) / 2
        total = total + weight * loss
        accuracy[name] = (logits.argmax(1) == answers[name]).float().mean().item()
    return total, accuracy


def optimizer_for(model: Stan, recipe: Recipe, stage: int) -> torch.optim.AdamW:
    """AdamW; no decay for tables, norms and biases; the trunk slower in stage 2."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, p in model.named_parameters():
        trunk = stage == 2 and name.startswith("visual.") and not recipe.trunk_only
        decay = 0.0 if p.dim() < 2 or "embedding" in name else recipe.decay
        groups.setdefault((recipe.trunk_share if trunk else 1.0, decay), []).append(p)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": d, "share": s} for (s, d), p in groups.items()],
        lr=0.0,
        betas=(0.9, 0.98),
    )


def copy_branch(model: Stan) -> None:
    """Start the branch's spatial layers from the last K trunk layers."""
    first = model.config.layers - model.config.branch_layers
    for k, block in enumerate(model.branch.spatial):
        block.load_state_dict(model.visual.transformer.resblocks[first + k].state_dict())


def one_step(run: Run, optimizer: torch.optim.Optimizer, bank: clips.Floats) -> dict[str, Any]:
    """Do one step of the run's stage; return its log record."""
    recipe, model = run.recipe, run.model
    if run.stage == 1:
        steps, rate = recipe.frame_steps, recipe.frame_rate
        pixels, answers = frame_batch(recipe, run.step, bank)
        features, weights = encode_trunk(model, pixels), dict.fromkeys(FRAME_QUESTIONS, 1.0)
    else:
        steps, rate = recipe.clip_steps, recipe.clip_rate
        pixels, answers = clip_batch(run, bank)
        features, weights = encode_clip(model, pixels, recipe.trunk_only), CLIP_WEIGHTS
    cosine = 0.5 * (1 + math.cos(math.pi * run.step / steps))
    for group in optimizer.param_groups:
        warm = min(1.0, (run.step + 1) / recipe.warm_up)
        group["lr"] = rate * group["share"] * warm * (0.01 + 0.99 * cosine)
    loss, accuracy = loss_of(run, features, answers, weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if run.stage == 2:
        run.accuracy += 0.05 * (accuracy["motion"] - run.accuracy)
        blind = recipe.trunk_only and run.step >= TRUNK_WAITS
        if run.accuracy > recipe.keeps_up or blind:
            run.difficulty = min(1.0, run.difficulty + recipe.harder)
    record = {"stage": run.stage, "step": run.step, "loss": loss.item(), **accuracy}
    return record | {"difficulty": run.difficulty}


def train(recipe: Recipe, out: Path, *, save_every: int = 100) -> Run:
    """Train from the start or from `out`/state.pt; log to `out`/log.jsonl; return the run."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    model, texts = build(recipe)
    run = Run(model, recipe, texts)
    optimizer = optimizer_for(model, recipe, 1)
    state_file = out / "state.safetensors"
    if state_file.exists():
        done, tensors = read_record(state_file), load_file(state_file)
        if done["recipe"] != vars(recipe):
            raise SystemExit(f"{state_file} belongs to another recipe; give another --out")
        run = Run(model, recipe, texts, **done["progress"])
        model.load_state_dict({n: tensors[f"model/{n}"] for n in model.state_dict()})
        optimizer = optimizer_for(model, recipe, run.stage)
        _load_moments(optimizer, tensors)
    _keep_log(out / "log.jsonl", run)
    bank = clips.texture_bank("train")
    start = time.perf_counter() - run.seconds
    with (out / "log.jsonl").open("a") as log:
        while run.stage <= 2:
            steps = recipe.frame_steps if run.stage == 1 else recipe.clip_steps
            if run.step >= steps:
                run.stage, run.step = run.stage + 1, 0
                if run.stage == 2:
                    copy_branch(model)
                    optimizer = optimizer_for(model, recipe, 2)
                continue
            record = one_step(run, optimizer, bank)
            run.step += 1
            run.seconds = time.perf_counter() - start
            print(json.dumps(record | {"seconds": round(run.seconds, 1)}), file=log)
            if run.step % 25 == 0:
                log.flush()
                shown = {k: round(v, 2) for k, v in record.items()}
                print(f"{run.seconds:6.0f} s  {shown}", file=sys.stderr, flush=True)
            if run.step % save_every == 0 or run.step == steps:
                _save_state(run, optimizer, state_file)
    return run


def _keep_log(log: Path, run: Run) -> None:
    """Drop the records of steps that a run cut off did after its last saved state."""
    lines = log.read_text().splitlines() if log.exists() else []
    kept = []
    for line in lines:
        record = json.loads(line)
        if (record["stage"], record["step"]) < run.place:
            kept.append(line)
    log.write_text("".join(f"{line}\n" for line in kept))


def _save_state(run: Run, optimizer: torch.optim.Optimizer, path: Path) -> None:
    progress = {k: getattr(run, k) for k in ("stage", "step", "difficulty", "accuracy", "seconds")}
    record = json.dumps({"recipe": vars(run.recipe), "progress": progress})
    tensors = {f"model/{n}": v for n, v in run.model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{n}": v for n, v in moments.items()}
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata={"run": record})
    temporary.replace(path)


def _load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give a fresh optimizer the moments of the saved one; its groups are already equal."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def read_record(path: Path) -> dict[str, Any]:
    """Return recipe and progress of a saved run."""
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["run"])


def plot(log: Path, path: Path) -> None:
    """Draw training accuracy and difficulty over the steps of stage 2, without a background."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # A grey that is legible on white and on black.
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    matplotlib.rcParams.update(dict.fromkeys(inks, "#768390"))

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [r for r in rows if r["stage"] == 2]
    figure, axes = plt.subplots(figsize=(6, 3.2))
    kernel = np.ones(25) / 25
    for name in ("motion", "caption", "difficulty"):
        values = np.array([r[name] for r in rows])
        if name != "difficulty":
            values = np.convolve(values, kernel, "valid")
        axes.plot(np.arange(len(values)) + len(rows) - len(values), values, label=name)
    axes.set(xlabel="step of stage 2", ylabel="training accuracy (mean of 25 steps)", ylim=(0, 1))
    axes.legend(facecolor="none")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100, transparent=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train, write `model.safetensors` (fp16) and `training.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trunk-only", action="store_true", help="the mean-pooled baseline")
    parser.add_argument("--frame-steps", type=int, default=Recipe.frame_steps)
    parser.add_argument("--clip-steps", type=int, default=Recipe.clip_steps)
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    run = train(Recipe(**options), out)
    save_model(full_model(run.model), out / "model.safetensors", dtype=torch.float16)
    plot(out / "log.jsonl", out / "training.png")
    print(f"trained in {run.seconds / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
