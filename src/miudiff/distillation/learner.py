"""Training a student: regression on the teacher's results, then distribution matching against the frozen IHC score model.

    A   L = |G(x, he) - teacher|
    B   L = w_M matching + w_S coarse_squares(G, s) - w_I I(g(s); G) + w_C patchNCE(G, s)

In B every step trains the score model of the student's images (D_fake) by the ordinary noise loss, and every `every`th the student.
The last three terms are the cost of transport; I and patchNCE are MIU-Diff's own structure terms (Eq. 2, Section 2.3).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from miudiff.checkpoints import Part
from miudiff.config import LAST_STEP, Strict
from miudiff.contrast import layered_patch_nce
from miudiff.diffusion.sampling import denoised
from miudiff.diffusion.score import NetworkConfig
from miudiff.distillation.losses import as_loss, coarse_squares, matching_gradient
from miudiff.errors import ConfigError
from miudiff.images import to_gray
from miudiff.information.estimator import Estimator, grid_offset
from miudiff.methods.miu_diff import MIUDiffConfig
from miudiff.methods.model import Card, Model
from miudiff.methods.presets import preset
from miudiff.methods.student import Student, StudentConfig, StudentModel, save_student, source_of
from miudiff.naming import SHIPPED
from miudiff.noise import NoiseKey
from miudiff.training.average import Average
from miudiff.training.descent import Descent, average_gradients, optimizer_over, placed
from miudiff.training.learner import OptimizerConfig, Tensors, learning_rate, sample_noise, sample_times

Share = Annotated[float, Field(ge=0, lt=1)]
Levels = tuple[Annotated[int, Field(ge=0, le=999)], Annotated[int, Field(ge=1, le=1000)]]

# Less than two thirds of the time of ihc-small's network, and 17 MB in float16.
SMALL = NetworkConfig(
    size=128,
    unshuffle=2,
    channels=(48, 96, 160, 192),
    attention=(),  # but in the middle
    head_channels=16,
    groups=16,
    residual_sampling=False,
    learned_variance=False,
)


class BetasConfig(OptimizerConfig):
    """AdamW with momentum to choose."""

    lr: float = Field(5e-5, gt=0)
    betas: tuple[Share, Share] = Field((0.0, 0.99), description="AdamW's; no momentum, as GANs are trained.")


class RegressionConfig(Strict):
    """Stage A."""

    steps: int = Field(4000, ge=0, le=LAST_STEP, description="Steps of regression before matching begins.")
    tiles: int = Field(2048, ge=1, le=10**7, description="Tiles that the teacher stains, once.")
    loss: Literal["l1", "l2"] = Field("l1", description="|G - teacher|, or its square.")
    optimizer: BetasConfig = BetasConfig(lr=3e-4, betas=(0.9, 0.99), warmup=100)


class MatchingConfig(Strict):
    """Stage B's distribution matching."""

    weight: float = Field(
        1.0, ge=0, description="w_M; at 0 no score model of the student's images is trained."
    )
    every: int = Field(3, ge=1, le=1000, description="Steps of D_fake for each of the student.")
    levels: Levels = Field(
        (5, 600), description="Noise levels, from and below, that the student is judged at."
    )
    fake_levels: Levels = Field((0, 700), description="Noise levels that D_fake is trained at.")
    tilt: float = Field(
        2.0,
        gt=0,
        le=10,
        description="Levels lie at (a uniform draw)^tilt of their range: beyond 1 more of them are low.",
    )
    optimizer: BetasConfig = BetasConfig(lr=1e-4)


class CostConfig(Strict):
    """Stage B's cost of transport."""

    colour: float = Field(6.0, ge=0, description="w_S: of the coarse colours, against the student's source.")
    block: int = Field(8, ge=1, le=256, description="Pixels a side of the squares whose means are compared.")
    information: float = Field(5e-4, ge=0, description="w_I: of the shared information, in nats.")
    contrast: float = Field(
        5e-4, ge=0, description="w_C: of the patch-contrastive loss on the teacher's encoder."
    )
    positions: int = Field(256, ge=2, description="Patches for each layer of that loss.")
    temperature: float = Field(0.07, gt=0)


class DistillConfig(Strict):
    """A student of MIU-Diff and its training."""

    teacher: str = Field(SHIPPED, description="The model folder, or the name of a model, that is distilled.")
    preset: str = Field("fast", description="The teacher's settings.")
    changes: tuple[str, ...] = Field(
        ("reverse.solver=dpmpp_2m", "reverse.spacing=log_snr", "guidance.scale=0"),
        description="What they change of the preset: by the ODE, which nothing guides, a result depends on the start's noise alone.",
    )
    network: NetworkConfig = SMALL
    init: Literal["fresh", "teacher"] = Field(
        "fresh",
        description="Fresh weights, or the teacher's, with `network` like its own: the student begins as the teacher's first clean estimate.",
    )
    regression: RegressionConfig = RegressionConfig()
    matching: MatchingConfig = MatchingConfig()
    cost: CostConfig = CostConfig()
    optimizer: BetasConfig = BetasConfig()
    ema: float = Field(0.995, ge=0, lt=1, description="Decay of the student's moving average.")

    @property
    def settings(self) -> MIUDiffConfig:
        """The teacher's settings."""
        return preset(self.preset, self.changes)


class DistillLearner:
    """One step of regression, or of D_fake and in its turn the student."""

    def __init__(
        self,
        config: DistillConfig,
        accelerator: Accelerator,
        seed: int,
        steps: int,
        teacher: Model,
        name: str,
    ) -> None:
        self.config, self.accelerator, self.seed, self.steps = config, accelerator, seed, steps
        self.teacher, self.name, self.reverse = teacher, name, config.settings.reverse
        torch.manual_seed(seed)  # the initial weights
        classes = len(teacher.card.markers)
        network = config.network.model_copy(update={"markers": classes or None, "learned_variance": False})
        made = StudentConfig(network=network, start=self.reverse.start, palette=self.reverse.palette)
        student = Student(made)
        if config.init == "teacher":
            student.begin_with(teacher.score)
        self.student = placed(student, accelerator)
        self.real = teacher.score.to(accelerator.device).eval().requires_grad_(False)
        self.fake = placed(copy.deepcopy(self.real).requires_grad_(True), accelerator)
        self.estimator = _estimator(teacher, config.cost)
        self.palettes = [teacher.palette(marker) for marker in teacher.card.markers] or [
            teacher.palette(None)
        ]
        self.average = Average(self.student.unet, config.ema)
        self.descent = Descent(accelerator)
        self.draw = partial(draw_noise, config=config, seed=seed)
        self._told: dict[str, Tensor] = {}  # of the student's last step, for the log
        kind = partial(optimizer_over, torch.optim.AdamW)
        self.optimizers = {
            "student": kind(self.student.parameters(), lr=config.optimizer.lr),
            "fake": kind(self.fake.parameters(), lr=config.matching.optimizer.lr),
        }

    def parts(self) -> Mapping[str, Part]:
        optimizers = {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}
        return {"student": self.student, "fake": self.fake, "average": self.average, **optimizers}

    def step(self, batch: Tensors, step: int) -> Tensors:
        source = self._source(batch)
        regression = self.config.regression
        if "ihc" in batch:
            error = self._generate(batch, source) - batch["ihc"]
            loss = error.abs().mean() if regression.loss == "l1" else error.square().mean()
            norm = self._take("student", loss, regression.optimizer, step, step, regression.steps)
            return {"regression": loss.detach(), "gradient_norm": norm}
        done, of = step - regression.steps, self.steps - regression.steps
        turn = done % self.config.matching.every == 0
        with torch.set_grad_enabled(turn):
            y0 = self._generate(batch, source)
        if turn:
            self._told = self._improve(y0, source, batch, step, done, of)
        followed = self._follow(y0.detach(), batch, step, done, of) if self.config.matching.weight else {}
        return self._told | followed

    def _improve(
        self, y0: Tensor, source: Tensor, batch: Tensors, step: int, done: int, of: int
    ) -> dict[str, Tensor]:
        """The student's step."""
        cost, weight = self.config.cost, self.config.matching.weight
        terms: dict[str, tuple[float, Tensor]] = {}
        if weight:
            terms["matching"] = weight, self._matching(y0, batch)
        if cost.colour:
            terms["colour"] = cost.colour, coarse_squares(y0, source, cost.block)
        if self.estimator is not None:
            terms["information"] = -cost.information, self._information(self.estimator, y0, source, step)
        if cost.contrast:
            terms["contrast"] = cost.contrast, self._contrast(y0, source, step)
        if not terms:
            return {}
        loss = torch.stack([factor * term for factor, term in terms.values()]).sum()
        norm = self._take("student", loss, self.config.optimizer, step, done, of)
        return {name: term.detach() for name, (_, term) in terms.items()} | {"gradient_norm": norm}

    def _follow(self, y0: Tensor, batch: Tensors, step: int, done: int, of: int) -> dict[str, Tensor]:
        """The step of D_fake, on images of the student."""
        t, noise = batch["fake_time"], batch["fake_noise"]
        y = self.fake.sde.perturb(y0, t, noise)
        with self.accelerator.autocast():
            eps = self.fake(y, t, self._classes(batch))[:, :3]
        loss = (eps.float() - noise).square().mean()
        self._take("fake", loss, self.config.matching.optimizer, step, done, of)
        return {"fake": loss.detach()}

    @torch.no_grad()
    def _source(self, batch: Tensors) -> Tensor:
        """s of each image, by its marker's palette."""
        he, noise = batch["he"], batch["palette"]
        if not self.reverse.palette:
            return source_of(he, None, None, 0.0)
        made = [
            source_of(he[i : i + 1], self.palettes[marker], noise[i : i + 1], self.reverse.variety)
            for i, marker in enumerate(batch["marker"].tolist())
        ]
        return torch.cat(made)

    def _generate(self, batch: Tensors, source: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.student(self.student.noised(source, batch["start"]), batch["he"], batch["marker"])

    def _classes(self, batch: Tensors) -> Tensor | None:
        return batch["marker"] if self.real.unet.config.num_class_embeds else None

    def _matching(self, y0: Tensor, batch: Tensors) -> Tensor:
        t, clean = batch["time"], []
        y = self.real.sde.perturb(y0.detach(), t, batch["noise"])
        with torch.no_grad(), self.accelerator.autocast():
            for score in (self.real, self.fake):
                eps = score(y, t, self._classes(batch))[:, :3]
                clean.append(denoised(score.sde, y, t, eps.float()))
        return as_loss(y0, matching_gradient(y0.detach(), clean[0], clean[1]))

    def _information(self, estimator: Estimator, y0: Tensor, source: Tensor, step: int) -> Tensor:
        """I of the source's gradient map and the result, both without noise, in nats."""
        offset = grid_offset(NoiseKey(self.seed, "grid"), step, estimator.config.patch, y0)
        with self.accelerator.autocast():
            return estimator.information(estimator.structure_map(source), y0, -1, -1, offset).mean()

    def _contrast(self, y0: Tensor, source: Tensor, step: int) -> Tensor:
        """The patch loss of the frozen encoder's features, luma against luma, as `methods.refinement` takes it."""
        taps = self.real.default_taps()
        with self.accelerator.autocast():
            queries = self.real.features(to_gray(y0), 0, taps)
            with torch.no_grad():
                keys = self.real.features(to_gray(source), 0, taps)
        key, most = NoiseKey(self.seed, "contrast"), self.config.cost.positions
        places = [
            key.distinct("patches", step * 64 + layer, min(most, count), count).to(y0.device)
            for layer, features in enumerate(queries)
            for count in [features.shape[2:].numel()]
        ]
        return layered_patch_nce(queries, keys, places, self.config.cost.temperature).mean()

    def _take(
        self, name: Literal["student", "fake"], loss: Tensor, rule: BetasConfig, step: int, done: int, of: int
    ) -> Tensor:
        """Backward and step of one network; the gradient norm before clipping.

        Raises:
            NonFiniteError: As `Descent.take`.
        """
        optimizer = self.optimizers[name]
        network: nn.Module = self.student if name == "student" else self.fake
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate(rule, done, of), rule.betas
            group["weight_decay"] = rule.weight_decay
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, network.parameters())
        norm = nn.utils.clip_grad_norm_(network.parameters(), rule.clip)
        self.descent.take([optimizer], loss, norm, step, f"loss of the {name}")
        if name == "student":
            self.average.update(self.student.unet)
        return norm.detach()

    def export(self, folder: Path) -> None:
        """Write the averaged student as a model folder, with its teacher's card."""
        student = copy.deepcopy(self.student).cpu().eval()
        student.unet.load_state_dict(dict(student.unet.state_dict()) | self.average.weights())
        card = self.teacher.card
        kept = {"markers", "mpp", "tile", "palette", "he_reference", "licence"}
        about = Card(
            name=self.name,
            description=f"One-step student of {card.name}. Research use only.",
            **{key: getattr(card, key) for key in kept},
        )
        save_student(folder, StudentModel(student, about, self.teacher.identity))


def _estimator(teacher: Model, cost: CostConfig) -> Estimator | None:
    """What the information is measured with, where it counts.

    Raises:
        ConfigError: The teacher has none.
    """
    if not cost.information:
        return None
    if teacher.estimator is None:
        raise ConfigError(
            f"distill.cost.information: found {cost.information:g}, but the teacher '{teacher.card.name}' has no MI estimator; expected 0"
        )
    return teacher.estimator


def draw_noise(batch: Tensors, config: DistillConfig, seed: int) -> dict[str, Tensor]:
    """`batch` with the noise of each image's start, [B, 3, size, size], and of its palette, [B, 1, size, size], and for matching two noise levels [B] and two noises."""
    keys, he = batch["key"], batch["he"]
    drawn = {
        "start": sample_noise(keys, seed, "start", he),
        "palette": sample_noise(keys, seed, "palette", he[:, :1]),
    }
    if "ihc" not in batch and config.matching.weight:
        for draw, (name, levels) in enumerate(
            (("", config.matching.levels), ("fake_", config.matching.fake_levels))
        ):
            drawn[f"{name}noise"] = sample_noise(keys, seed, "batch", he, draw)
            span = levels[1] - levels[0]
            share = (sample_times(keys, seed, span, draw) + 0.5) / span
            drawn[f"{name}time"] = levels[0] + (span * share**config.matching.tilt).long()
    return {**batch, **drawn}
