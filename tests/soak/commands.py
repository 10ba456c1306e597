"""Command lines, put together at random from the options that each command declares."""

import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import typer

from gradscope.cli import app, main
from tests.soak.files import MEASURE, TRAIN
from tests.soak.trials import Input, Make

#: A small sound line of each command.
LINES = {
    "train": (*TRAIN, "--out", "new.pt"),
    "analyze": ("analyze", "a.pt", *MEASURE, "--out", "out"),
    "attack": ("attack", "a.pt", "--attacks", "fgsm", *MEASURE, "--out", "out"),
    "landscape": ("landscape", "a.pt", "--images", "1", "--points", "2", "--no-figures", "--out", "out"),
    "transfer": ("transfer", "a.pt", "b.pt", *MEASURE, "--out", "out"),
    "audit": ("audit", "a.pt", "--samples", "4", "--no-figures", "--allow-inconclusive", "--out", "out"),
    "study": ("study", "study.toml", "--dry-run"),
    "claims": ("claims", "study"),
    "report": ("report", "study/attack"),
    "list": ("list", "attacks"),
}
#: Options that start programs, use the network, or have exit codes of their own.
LEFT_OUT = {"download", "devices", "jobs", "engine", "address", "fail_on_masking", "fail_on_blind", "help"}
WORDS = (
    *("", " ", "-", "--", "-1", "--out", "nan", "None", "x" * 300, "a\nb", "\x1b[31m", "\udcff", "ä€😀", "'", '"'),
    *(
        "../a.pt",
        ".",
        "..",
        "a.pt",
        "study",
        "a,b",
        ",",
        "pgd,pgd",
        "pgd",
        "fgsm",
        "norm",
        "l2",
        "linf",
        "digits",
        "=1",
    ),
    *("epochs=1", "epochs=x", "phases.0.epochs=1", "phases.9.x=1", "a=b=c", "=", "{}", "[1", "cnn2", "rl", "0,1", "l3"),
)
NUMBERS = (
    *("-1", "0", "1", "2", "1.5", "1e3", "nan", "inf", "-inf", "1e999", "-0", "+1", "0x2", "1_0", " 1", "٣", "9" * 30),
    *("1e-320", "0.5", "True", "", "1,2", "2/255", "1/0", "0.1,0.2"),
)
PATHS = (
    *(
        "",
        ".",
        "a.pt",
        "study",
        "missing",
        "a.pt/b",
        "x" * 300,
        "/".join("x" * 200 for _ in range(30)),
        "loop",
        "\udcff",
    ),
    *("study.toml", "nets.py", "digits.npz", "tree", "new\nline", "pipe", "weights.pt", "weights.safetensors", "-"),
)
MODELS = (
    *("a.pt", "b.pt", "torchvision:resnet18", "torchvision:x", "timm:x", "timm:resnet18", "nets:make", "nets:none"),
    *(
        "nets:make(1)",
        "nets:make(**{})",
        "nets:make(",
        "os:system('touch escaped')",
        "weights.pt",
        "weights.safetensors",
    ),
    *(
        "weights.safetensors",
        "missing.pt",
        "study",
        "loop",
        "x" * 300,
        "",
        "resnet18",
        "nets",
        "\udcff",
        "a:b:c",
        ":",
        "nets:" + "a." * 300,
    ),
)


def makes(material: Path) -> dict[str, Make]:
    return {"command lines": partial(_make, material)}


def _make(material: Path, random: Random, folder: Path) -> Input:
    for name in ("a.pt", "b.pt", "nets.py", "study.toml", "digits.npz", "weights.pt", "weights.safetensors"):
        shutil.copy(material / name, folder)
    shutil.copytree(material / "study", folder / "study")
    shutil.copytree(material / "tree", folder / "tree")
    (folder / "loop").symlink_to("loop")
    line = _line(random)
    return Input(f"gradscope {line!r:.500}", partial(main, line))


def _line(random: Random) -> list[str]:
    name = random.choice(list(LINES))
    line = list(LINES[name])
    command: Any = typer.main.get_command(app)
    options = [
        option
        for option in command.commands[name].params
        if option.param_type_name == "option" and option.name not in LEFT_OUT
    ]
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        if not options:
            break
        option = random.choice(options)
        line.append(random.choice((*option.opts, *option.secondary_opts)))
        if not option.is_flag:
            line.append(_value(random))
    if name in ("analyze", "attack", "landscape", "transfer", "audit") and random.random() < 0.3:
        line[1:1] = random.choices(MODELS, k=random.choice((1, 1, 2)))
        del line[random.randrange(1, 3)]
    if random.random() < 0.15:
        line.insert(random.randrange(len(line) + 1), random.choice((*WORDS, *NUMBERS)))
    if random.random() < 0.1:
        del line[random.randrange(len(line))]
    runs_others = any("system" in word for word in line)
    return [word for word in line if "\0" not in word and not (runs_others and word == "--trust-code")]


def _value(random: Random) -> str:
    return random.choice(random.choices((NUMBERS, PATHS, WORDS), (3, 1, 2))[0])
