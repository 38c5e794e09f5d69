"""The auto-encoder of the pocket model: Wan 2.1's causal video decoder, and an encoder to train it.

The decoder is what the plugin loads: same arithmetic and tensor names as upstream. The encoder only
makes the latents that the decoder and the transformer are trained on; it is beside this file, not in the crate.

    python -m train.autoencoder --run RUN --minutes 34
    python -m train.autoencoder --check ../../tests/fixtures/vae
"""

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import curves
from .clips import HEIGHT, WIDTH, Clip, stored
from .muon import Muon
from .world import World

FRAMES_PER_LATENT = 4
SPATIAL_STRIDE = 8
POINTWISE = (1, 1, 1)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder, named as in the plugin's `WanVaeConfig`."""

    dim: int = 8
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_res_blocks: int = 1
    temporal_downsample: tuple[bool, ...] = (False, True, True)


class RmsNorm(nn.Module):
    """Divides each pixel by the root mean square of its channels."""

    def __init__(self, channels: int, ones: int = 3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * ones))

    def forward(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        channels = xs.shape[1]
        gamma = self.gamma.view(channels, 1, 1, 1)
        # In f32 also under autocast: squares of bf16 lose the small channels.
        return F.normalize(xs.float(), dim=1).mul(gamma * channels**0.5).to(xs.dtype)


@torch.compile(dynamic=True)
def normalised_silu(rows: Tensor, gamma: Tensor) -> Tensor:
    """`RmsNorm` and SiLU of each row, (N, C), in one pass over memory: a third of the time.

    Needs a C++ compiler; the environment's TORCH_COMPILE_DISABLE=1 does without.
    """
    xs = rows.float()
    scale = torch.rsqrt(xs.square().mean(1, keepdim=True).clamp_min(1e-24))
    return F.silu(xs * scale * gamma).to(rows.dtype)


class RmsNormSilu(RmsNorm):
    """`RmsNorm` followed by SiLU."""

    def forward(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        rows = xs.permute(0, 2, 3, 4, 1)
        ys = normalised_silu(rows.reshape(-1, xs.shape[1]), self.gamma.flatten())
        return ys.view(rows.shape).permute(0, 4, 1, 2, 3)


class CausalConv(nn.Conv3d):
    """A convolution that sees its frame and those before it; zeros come before the first."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)):
        super().__init__(inputs, outputs, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.history = kernel[0] - 1

    def forward(self, xs: Tensor) -> Tensor:
        """(B, I, T, H, W) to (B, O, T, H, W)."""
        if self.history:
            xs = F.pad(xs, (0, 0, 0, 0, self.history, 0))
        return super().forward(xs)


class Residual(nn.Module):
    """Two normalised, activated convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int] = (3, 3, 3)):
        super().__init__()
        # The indices are part of the tensors' names: upstream has SiLU at 1 and 4, dropout at 5.
        self.residual = nn.Sequential(
            RmsNormSilu(inputs), nn.Identity(), CausalConv(inputs, outputs, kernel),
            RmsNormSilu(outputs), nn.Identity(), nn.Identity(),
            CausalConv(outputs, outputs, kernel),
        )
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else CausalConv(inputs, outputs, POINTWISE)

    def forward(self, xs: Tensor) -> Tensor:
        """(B, I, T, H, W) to (B, O, T, H, W)."""
        return self.shortcut(xs) + self.residual(xs)


class FrameAttention(nn.Module):
    """Attention of one head among the pixels of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RmsNorm(channels, ones=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        batch, channels, frames, height, width = xs.shape
        pixels = self.norm(xs).permute(0, 2, 3, 4, 1).reshape(batch * frames, -1, channels)
        qkv = F.linear(pixels, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # (B T, 1 head, pixels, C)
        ys = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        ys = F.linear(ys, self.proj.weight.flatten(1), self.proj.bias)
        ys = ys.view(batch, frames, height, width, channels)
        return xs + ys.permute(0, 4, 1, 2, 3)


# [parity, source, tap]: the source row (before, same, after) that each of a kernel's three taps
# falls on when it is centred on an even or an odd row of a picture whose rows are all doubled.
TAPS_OF_DOUBLED = torch.tensor([
    [[1.0, 0, 0], [0, 1, 1], [0, 0, 0]],
    [[0.0, 0, 0], [1, 1, 0], [0, 0, 1]],
])


class Upsample(nn.Module):
    """Twice the size at half the channels; in time, twice the frames where it has a `time_conv`."""

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C/2, T or 2T-1, 2H, 2W)."""
        if self.time_conv is not None:
            xs = self.double_frames(xs)
        return self.double_size(xs)

    def double_frames(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, 2T-1, H, W): the first frame is not doubled, nor ever seen."""
        batch, channels, frames, height, width = xs.shape
        pairs = self.time_conv(xs[:, :, 1:]).permute(0, 2, 3, 4, 1)
        pairs = pairs.reshape(batch, frames - 1, height, width, 2, channels)
        pairs = pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)  # (B, 2(T-1), H, W, C)
        return torch.cat([xs[:, :, :1], pairs.permute(0, 4, 1, 2, 3)], dim=2)

    def double_size(self, xs: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C/2, T, 2H, 2W): what `resample` says, at a fraction of the cost.

        Rather than convolve a picture in which each pixel stands four times, this convolves the
        small one with a kernel for each of the four places.
        """
        weight, bias = self.resample[1].weight, self.resample[1].bias
        taps = TAPS_OF_DOUBLED.to(weight)
        kernels = torch.einsum("oirs,pyr,qxs->pqoiyx", weight, taps, taps).flatten(0, 2)
        places = F.conv3d(xs, kernels.unsqueeze(2), bias.repeat(4), padding=(0, 1, 1))
        batch, _, frames, height, width = xs.shape
        places = places.permute(0, 2, 3, 4, 1).reshape(batch, frames, height, width, 2, 2, -1)
        places = places.permute(0, 1, 2, 4, 3, 5, 6)  # (B, T, H, 2, W, 2, C/2)
        return places.flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)


class Layers(nn.Module):
    """Everything of the decoder but `conv2`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        widths = [config.dim * mult for mult in config.dim_mult]
        widest = widths[-1]
        self.conv1 = CausalConv(config.z_dim, widest)
        self.middle = nn.Sequential(
            Residual(widest, widest), FrameAttention(widest), Residual(widest, widest)
        )
        self.upsamples = nn.Sequential(*upsamples(config, widths))
        self.head = nn.Sequential(
            RmsNormSilu(widths[0]), nn.Identity(), CausalConv(widths[0], 3)
        )

    def forward(self, xs: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(xs))))


def upsamples(config: DecoderConfig, widths: list[int]) -> list[nn.Module]:
    """From the middle to the head, smallest frames first, numbered as upstream."""
    layers = []
    inputs = widths[-1]
    doubled = list(config.temporal_downsample)
    for width in reversed(widths):
        for _ in range(config.num_res_blocks + 1):
            layers.append(Residual(inputs, width))
            inputs = width
        if doubled:
            layers.append(Upsample(width, temporal=doubled.pop()))
            inputs = width // 2
    return layers


class Decoder(nn.Module):
    """Wan 2.1's decoder for whole clips, with upstream's tensor names.

    After <https://github.com/guandeh17/Self-Forcing/blob/33593df/wan/modules/vae.py>, whose
    streaming comes to the same: every convolution is causal, and the first latent makes one frame.
    """

    def __init__(self, config: DecoderConfig = DecoderConfig()):
        super().__init__()
        self.conv2 = CausalConv(config.z_dim, config.z_dim, POINTWISE)
        self.decoder = Layers(config)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z, T, h, w) to (B, 3, 1+4(T-1), 8h, 8w), about [-1, 1] and not clamped."""
        return self.decoder(self.conv2(latents))


class Encoder(nn.Module):
    """Makes the latents. Each depends on its own four frames alone, so that it is cheap to run."""

    def __init__(self, z_dim: int = 16, width: int = 96, layers: int = 3):
        super().__init__()
        pixels = 3 * FRAMES_PER_LATENT * SPATIAL_STRIDE**2
        self.entry = CausalConv(pixels, width, POINTWISE)
        self.layers = nn.Sequential(*[Residual(width, width, (1, 3, 3)) for _ in range(layers)])
        self.norm = RmsNormSilu(width)
        self.leave = CausalConv(width, z_dim, POINTWISE)

    def encode(self, pixels: Tensor) -> Tensor:
        """A stream's first frames, (B, 3, 1+4(T-1), H, W) in [-1, 1], to (B, z, T, H/8, W/8)."""
        first = pixels[:, :, :1].repeat_interleave(FRAMES_PER_LATENT, dim=2)
        return self.encode_groups(torch.cat([first, pixels[:, :, 1:]], dim=2))

    def encode_groups(self, pixels: Tensor) -> Tensor:
        """Frames of later in a stream, (B, 3, 4T, H, W) in [-1, 1], to (B, z, T, H/8, W/8)."""
        batch, _, frames, height, width = pixels.shape
        group, side = FRAMES_PER_LATENT, SPATIAL_STRIDE
        shape = (frames // group, group, height // side, side, width // side, side)
        cells = pixels.reshape(batch, 3, *shape).permute(0, 2, 4, 6, 1, 3, 5, 7)
        cells = cells.flatten(4).permute(0, 4, 1, 2, 3)  # (B, 768, T, h, w), channels last
        return self.leave(self.norm(self.layers(self.entry(cells))))


class AutoEncoder(nn.Module):
    """Both halves, as they are trained."""

    def __init__(self, config: DecoderConfig = DecoderConfig()):
        super().__init__()
        self.encoder = Encoder(config.z_dim)
        self.decoder = Decoder(config)

    def forward(self, pixels: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """(B, 3, 1+4(T-1), H, W) to the same, decoded, and to the latents (B, z, T, h, w).

        `noise`, in standard deviations of the latents, teaches the decoder to forgive the errors of
        a transformer, and the encoder to put near each other what looks alike.
        """
        latents = self.encoder.encode(pixels)
        spread = latents.detach().std(dim=(0, 2, 3, 4), keepdim=True)
        return self.decoder(latents + noise * spread * torch.randn_like(latents)), latents


# What is added to the mean absolute error, and how much of it counts.
EDGES = 1.0  # the same error of the differences between neighbours in space
MOTION = 0.25  # and in time
PULL = 0.01  # of the latents to zero mean and unit variance
NOISE = 0.15


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """How far two clips, (B, 3, T, H, W), are from each other, a scalar."""
    error = made.float() - wanted
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    return error.abs().mean() + EDGES * edges + MOTION * error.diff(dim=2).abs().mean()


def pull_loss(latents: Tensor) -> Tensor:
    """How far each channel of (B, z, T, h, w) is from zero mean and unit variance, a scalar."""
    latents = latents.float()
    mean, variance = latents.mean(dim=(0, 2, 3, 4)), latents.var(dim=(0, 2, 3, 4))
    return (mean.square() + (variance - 1).square()).mean()


# --- Data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CropConfig:
    """What a batch holds."""

    batch: int = 4
    frames: int = 9
    side: int = 64
    objects: float = 0.75  # share of the crops that have the object in them: it is what is hard


def batches(run: Path, config: CropConfig, seed: int) -> Iterator[Tensor]:
    """Endless crops, (B, T, side, side, 3) in u8, of the clips in a folder."""
    clips, rng, world = stored(run), np.random.default_rng((1, seed)), World(WIDTH, HEIGHT)
    while True:
        crops = []
        for index in rng.integers(0, len(clips), config.batch):
            first = int(rng.integers(0, clips.shape[1] - config.frames + 1))
            frame = first + config.frames // 2
            y, x = corner(world, Clip.number(int(index)), frame, config, rng)
            moment = slice(first, first + config.frames)
            crops.append(clips[index, moment, y : y + config.side, x : x + config.side])
        yield torch.from_numpy(np.stack(crops))


def corner(world: World, clip: Clip, frame: int, config: CropConfig, rng: np.random.Generator):
    """Row and column of a crop: anywhere, or so that the object of a frame is in it."""
    room = np.array([HEIGHT, WIDTH]) - config.side
    place = rng.integers(0, room + 1)
    if rng.random() < config.objects:
        pose = clip.shown(world, frame)[1]
        away = rng.integers(-config.side // 4, config.side // 4 + 1, 2)
        centre = HEIGHT * np.array([pose.y, pose.x])
        place = np.clip(centre - config.side // 2 + away, 0, room).astype(int)
    return place


def to_pixels(frames: Tensor, device: str) -> Tensor:
    """(B, T, H, W, 3) in u8 to (B, 3, T, H, W) in [-1, 1], channels last in memory."""
    return (frames.to(device).float() / 127.5 - 1).permute(0, 4, 1, 2, 3)


# --- Optimisers --------------------------------------------------------------------------------


def optimisers(model: AutoEncoder) -> list[torch.optim.Optimizer]:
    """Muon for the kernels within, AdamW for the rest: vectors, and what touches pixels."""
    ends = ("encoder.entry.weight", "decoder.decoder.head.2.weight")
    kernels, rest = [], []
    for name, param in model.named_parameters():
        is_kernel = name.endswith(".weight") and name not in ends
        (kernels if is_kernel else rest).append(param)
    return [Muon(kernels), torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)]


def rate_at(progress: float, step: int, peak: float) -> float:
    """Up over the first 100 steps, then down as a cosine to nothing at the end of the budget."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))
    return peak * min(1.0, (step + 1) / 100) * cosine


# --- Training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and where."""

    run: Path
    minutes: float
    encoder_minutes: float  # from then on only the decoder learns, and latents stay as they are
    rate: float = 1e-2
    device: str = "cpu"
    seed: int = 0


class Training:
    """A model on its way: what a checkpoint keeps."""

    def __init__(self, config: TrainConfig):
        torch.manual_seed(config.seed)
        self.config = config
        self.model = AutoEncoder().to(config.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisers = optimisers(self.model)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.out = config.run / "vae"
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.config.minutes)

    def learn(self, frames: Tensor) -> None:
        """One step on a batch, (B, T, H, W, 3) in u8."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate_at(self.progress, self.step, self.config.rate)
        pixels = to_pixels(frames, self.config.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.config.device == "cuda"):
            made, latents = self.model(pixels, NOISE)
        picture = picture_loss(made, pixels)
        pull = 0 if self.encoder_is_fixed else PULL * pull_loss(latents)
        (picture + pull).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        averages, params = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averages, params, 1 - decay)
        self.losses.append(picture.item())
        self.step += 1

    def fix_encoder(self) -> None:
        """What it is on average, it stays; its latents and their moments can be used from now on."""
        encoder = self.average.encoder
        self.model.encoder.load_state_dict(encoder.state_dict())
        self.model.encoder.requires_grad_(False)
        torch.save(encoder.state_dict(), self.out / "encoder.pt")
        mean, std = latent_moments(encoder, self.config)
        moments = {"mean": mean.tolist(), "std": std.tolist()}
        (self.out / "moments.json").write_text(json.dumps(moments) + "\n")

    @property
    def encoder_is_fixed(self) -> bool:
        return not next(self.model.encoder.parameters()).requires_grad

    def save(self) -> None:
        path = self.out / "autoencoder.pt"
        state = {name: getattr(self, name) for name in ("step", "seconds", "losses")}
        state["model"], state["average"] = self.model.state_dict(), self.average.state_dict()
        state["optimisers"] = [optimiser.state_dict() for optimiser in self.optimisers]
        state["fixed"] = self.encoder_is_fixed
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # never half a checkpoint

    def resume(self) -> None:
        state = torch.load(self.out / "autoencoder.pt", map_location=self.config.device)
        for name in ("step", "seconds", "losses"):
            setattr(self, name, state[name])
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(kept)
        self.model.encoder.requires_grad_(not state["fixed"])


def train(training: Training) -> None:
    """Learns until the minutes are over; saves each minute, looks at the result every fourth."""
    shown = validation_frames()
    config = training.config
    clips = batches(config.run, CropConfig(), seed=config.seed + training.step)
    begun, minute = time.time() - training.seconds, training.seconds // 60
    while training.progress < 1:
        training.learn(next(clips))
        training.seconds = time.time() - begun
        if training.seconds > 60 * config.encoder_minutes and not training.encoder_is_fixed:
            training.fix_encoder()
            training.save()  # latents are made with it from now on
        if training.step % 50 == 0:
            loss = np.mean(training.losses[-50:])
            print(f"step {training.step}  {training.seconds:.0f} s  loss {loss:.4f}", flush=True)
        if training.seconds // 60 > minute:
            minute = training.seconds // 60
            training.save()
            if minute % 4 == 0:
                look(training, shown)
    training.save()


def look(training: Training, frames: Tensor) -> float:
    """Writes the reconstruction and the losses as pictures; returns the PSNR in dB."""
    made = reconstruct(training.average, frames, training.config.device)
    error = (made.float() - frames.float()).square().mean(dim=(1, 2, 3, 4))  # (B,)
    psnr = (10 * torch.log10(255**2 / error)).mean().item()
    print(f"step {training.step}  {training.seconds:.0f} s  PSNR {psnr:.2f} dB", flush=True)
    rows = [torch.cat([frames[i, -1], made[i, -1]], dim=1) for i in range(min(6, len(frames)))]
    Image.fromarray(torch.cat(rows).numpy()).save(training.out / "pairs.png")
    curves.panel("loss", training.losses, curves.across(len(training.losses))).save(training.out / "losses.png")
    return psnr


def validation_frames(clips: int = 4, frames: int = 9) -> Tensor:
    """(B, T, H, W, 3) in u8, always the same."""
    world, rng = World(WIDTH, HEIGHT), np.random.default_rng((2, 0))
    return torch.from_numpy(np.stack([world.random_clip(rng, frames) for _ in range(clips)]))


@torch.no_grad()
def reconstruct(model: AutoEncoder, frames: Tensor, device: str) -> Tensor:
    """(B, T, H, W, 3) in u8 to the same, one clip at a time to spare memory."""
    clips = []
    for clip in frames:
        made, _ = model(to_pixels(clip[None], device), noise=0.0)
        clips.append((made.clamp(-1, 1) * 127.5 + 127.5).round().byte()[0].permute(1, 2, 3, 0))
    return torch.stack(clips).cpu()


# --- Results -----------------------------------------------------------------------------------


@torch.no_grad()
def latent_moments(encoder: Encoder, config: TrainConfig, clips: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (z,), over some clips."""
    latents = []
    for clip in stored(config.run)[:clips]:
        frames = torch.from_numpy(np.array(clip))
        latents.append(encoder.encode_groups(to_pixels(frames[None], config.device)).cpu())
    latents = torch.cat(latents)  # (clips, z, T, h, w)
    return latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))


def export(training: Training) -> None:
    """Writes what the plugin loads, and the figures."""
    model = training.average
    weights = {k: v.half().cpu().contiguous() for k, v in model.decoder.state_dict().items()}
    save_file(weights, training.out / "vae.safetensors")
    figures = {
        "decoder": asdict(DecoderConfig()),
        "psnr": look(training, validation_frames()),
        "steps": training.step,
        "seconds": training.seconds,
    }
    (training.out / "vae.json").write_text(json.dumps(figures, indent=1) + "\n")


# Wan 2.1's own latent statistics, which the example was made with.
WAN_MEAN = torch.tensor([
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
])
WAN_STD = torch.tensor([
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
])


@torch.no_grad()
def check(folder: Path) -> None:
    """Compares the decoder with upstream's, of which `folder` holds an example."""
    sizes = json.loads((folder / "config.json").read_text())
    del sizes["kind"]
    decoder = Decoder(DecoderConfig(**sizes))
    names = decoder.state_dict().keys()
    weights = load_file(folder / "model.safetensors")
    decoder.load_state_dict({name: weights[name] for name in names})
    example = load_file(folder / "expected.safetensors")
    latents = example["latents"] * WAN_STD.view(-1, 1, 1) + WAN_MEAN.view(-1, 1, 1)  # (T, z, h, w)
    made = decoder(latents.transpose(0, 1)[None])[0].transpose(0, 1)
    error = (made - example["pixels_unclamped"]).abs().max().item()
    print(f"largest difference {error:.1e}")
    if error > 1e-4:
        raise SystemExit("the decoder is not upstream's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="the folder of the clips")
    parser.add_argument("--minutes", type=float, default=34.0)
    parser.add_argument("--encoder-minutes", type=float, help="a quarter of all, where it is not said")
    parser.add_argument("--rate", type=float, default=TrainConfig.rate)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--check", type=Path, metavar="FIXTURE", help="only compare with upstream")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.check:
        return check(args.check)
    times = (args.minutes, args.encoder_minutes or args.minutes / 4)
    training = Training(TrainConfig(args.run, *times, args.rate, args.device, args.seed))
    if args.resume:
        training.resume()
    train(training)
    export(training)


if __name__ == "__main__":
    main()
