"""Hostile models: on the command line, where their code is trusted, and handed to the library."""

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import gradscope as gs
from gradscope.cli import main
from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.results.manifest import MANIFEST
from tests.soak import networks
from tests.soak.networks import MODULE, PASSES, WHENS
from tests.soak.trials import Input, Make

COMMANDS = {
    "analyze": (["--steps", "2"], ["--steps", "3", "--batch-size", "5"], ["--attack", "pgd,pgd-paper", "--steps", "2"]),
    "attack": (
        ["--attacks", "fgsm,apgd-ce", "--steps", "3"],
        ["--attacks", "pgd-float64,fab-t", "--steps", "2", "--batch-size", "5"],
        ["--attacks", "noise,square,apgd-t", "--queries", "5", "--steps", "2", "--save-images"],
    ),
    "transfer": (["--steps", "2"], ["--steps", "2", "--batch-size", "5"]),
    "audit": (["--budget", "quick", "--allow-inconclusive"],),
    "landscape": (
        ["--points", "3", "--steps", "2"],
        ["--points", "3", "--space", "weights"],
        ["--points", "3", "--space", "weights", "--line", "--adversarial"],
    ),
}
#: How often each is drawn: an audit takes as long as ten of the others.
_OFTEN = {"analyze": 4, "attack": 4, "transfer": 3, "audit": 1, "landscape": 4}
_BALL = ["--norm", "linf", "--epsilon", "0.1"]


def prepare(material: Path) -> None:
    """Train the sound network, in the process whose forks try the hostile ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = networks.Network(())
        images = _digits().train
        x, y = images.batch(torch.arange(len(images)), "cpu")
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    networks.TRAINED.update({key: value.detach().clone() for key, value in net.state_dict().items()})
    networks.make("exported")
    gs.trace(net.eval(), x[:2], y[:2], steps=2)  # what is looked up once, such as versions, is then known to the forks


def _digits() -> Splits:
    return sources.load(Data())


def _oddities(random: Random) -> list[str]:
    found = []
    for _ in range(random.choice((1, 1, 2))):
        if random.random() < 0.3:
            found.append(random.choice(list(MODULE)))
        else:
            when = random.choice(WHENS)
            found.append(random.choice(PASSES) + (f" @ {when}" if when else ""))
    return found


def _command(random: Random) -> tuple[str, list[str]]:
    command = random.choices(list(_OFTEN), list(_OFTEN.values()))[0]
    options = random.choice(COMMANDS[command])
    return command, [*options, *([] if "weights" in options else _BALL)]


def _on_the_command_line(random: Random, folder: Path) -> Input:
    oddities = _oddities(random)
    command, options = _command(random)
    hostile = f"tests.soak.networks:make({', '.join(map(repr, oddities))})"
    models = [hostile] if command != "transfer" and random.random() < 0.7 else ["tests.soak.networks:make()", hostile]
    count = ["--images" if command == "landscape" else "--samples", "7"]
    out = str(folder / "out")
    line = [command, *models, "--dataset", "digits", "--trust-code", *options, *count, "--no-figures", "--out", out]

    def run() -> None:
        tempfile.tempdir = str(folder)
        try:
            main(line)
        except SystemExit as ended:
            if ended.code in (0, None):
                assert json.loads((folder / "out" / MANIFEST).read_text())["complete"], "exit 0 without results"
            raise

    return Input(f"{' '.join(map(repr, line))}", run)


def _in_the_library(random: Random, folder: Path) -> Input:
    oddities = _oddities(random)
    command, words = _command(random)
    measure = {"analyze": gs.trace, "attack": gs.attack, "transfer": gs.transfer, "audit": gs.audit}.get(
        command, gs.landscape
    )
    options: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            options[word[2:].replace("-", "_")] = True
            last = word[2:].replace("-", "_")
        else:
            options[last] = word
    several = command == "transfer" or random.random() < 0.3

    def run() -> None:
        tempfile.tempdir = str(folder)
        try:
            sound, model = networks.make(), networks.make(*oddities)
        except (networks.OwnError, RuntimeError):
            return  # such a model is never handed over
        images = _digits().test
        x, y = images.batch(torch.arange(7), "cpu")
        comparable = not set(oddities_of(oddities)) & _CHANGES
        before, mine = _state(), comparable and _flags(model)
        given = x.clone()
        try:
            measure({"sound": sound, "hostile": model} if several else model, x, y, **options)
        finally:
            assert _state() == before, f"the global state has changed: {before} {_state()}"
            if comparable:
                assert _flags(model) == mine, f"the model's flags have changed {mine} {_flags(model)}"
            if not any("its input" in oddity for oddity in oddities):
                assert torch.equal(x, given), "the images have changed"

    return Input(f"{command} {oddities} {options} several={several}", run)


def oddities_of(oddities: list[str]) -> list[str]:
    return [oddity.partition(" @ ")[0] for oddity in oddities]


#: Oddities that themselves change what is compared.
_CHANGES = {
    "trains",
    "requires gradients",
    "leaves hooks",
    "adds a parameter",
    "drops a layer",
    "has a gradient",
    "lazy",
    "lazy inside",
    *(name for name in MODULE if name.endswith("raises") or "does nothing" in name),
}


def _state() -> tuple[object, ...]:
    """What torch keeps for all: random numbers, types, threads and switches."""
    return (
        torch.get_rng_state().sum().item(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_float32_matmul_precision(),
    )


def _flags(model: object) -> tuple[object, ...]:
    """What measuring may not leave behind in a model."""
    if not isinstance(model, nn.Module):
        return ()
    modules = list(nn.Module.modules(model))
    return (
        [module.training for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        [(parameter.requires_grad, parameter.grad is None) for parameter in nn.Module.parameters(model)],
    )


def _in_training(random: Random, folder: Path) -> Input:
    oddities, mode = _oddities(random), random.choice(("sl", "rl", "sl-adv"))

    def run() -> None:
        tempfile.tempdir = str(folder)
        gs.train(
            mode,
            architecture=f"tests.soak.networks:make({', '.join(map(repr, oddities))})",
            trust_code=True,
            epochs=1,
            train_samples=200,
            progress=False,
        )

    return Input(f"train {mode} {oddities}", run)


def _make(random: Random, folder: Path) -> Input:
    doors = (_on_the_command_line, _in_the_library, _in_training)
    return random.choices(doors, (4, 4, 1))[0](random, folder)


MAKES: dict[str, Make] = {"models": _make}
