"""What the commands refuse: one line, exit code 2, and not a byte lost."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscope
from gradscope.measure import analyze, attack, audit, input_landscape, models, transfer, weight_landscape
from gradscope.training import loop

Run = Callable[..., Any]
Content = Callable[[Path], dict[str, bytes]]

#: Command, and what its one line must say. Every command would replace what is there if it ran.
TRAIN = "train --overwrite --out {world}/sl.pt --epochs 1 "
ANALYZE = "analyze --overwrite --out {world}/results --steps 1 --metrics loss "
ON = ANALYZE + "{world}/sl.pt "
WEIGHTS = "landscape --overwrite --out {world}/results --images 2 --space weights {world}/sl.pt "
BATTLE = "attack --overwrite --attacks pgd --out {world}/results {world}/sl.pt "
AUDIT = "audit --overwrite --budget quick --out {world}/results {world}/sl.pt "
SHOWN = "transfer --overwrite --out {world}/results {world}/sl.pt "
AROUND = "landscape --overwrite --out {world}/results --images 2 --steps 2 {world}/sl.pt "
BAD = {
    "data set": (TRAIN + "--mode sl --dataset digit", ["--dataset", "did you mean 'digits'", "'digit'", "cifar10"]),
    "data set to analyse": (ON + "--dataset cifar1", ["--dataset", "did you mean 'cifar10'"]),
    "file in the place of a data set": (
        TRAIN + "--mode sl --dataset {world}/grey.npz",
        ["--dataset must be a name", "for this file give dataset 'npz' with --data-root {world}/grey.npz"],
    ),
    "folder in the place of a data set": (
        ON + "--dataset {world}/tree",
        ["--dataset must be a name", "for this folder give dataset 'folder' with --data-root {world}/tree"],
    ),
    "too few training images": (
        TRAIN + "--mode sl --train-samples 10",
        ["--train-samples must include 2 images", "at least 11 for digits, got 10"],
    ),
    "architecture": (TRAIN + "--mode sl --arch resnet-18", ["--arch", "did you mean 'resnet18'", "'resnet-18'"]),
    "mode": (TRAIN + "--mode rl-avd", ["--mode", "did you mean 'rl-adv'", "'rl-avd'", "sl-adv"]),
    "metric": (ON + "--metrics cosin,norm", ["--metrics", "did you mean 'cosine'", "'cosin'", "entropy"]),
    "metric twice": (ON + "--metrics norm,cosine,norm", ["--metrics must name each only once, got 'norm' again"]),
    "attack twice": (ON + "--attack pgd,pgd", ["--attack must name each only once, got 'pgd' again"]),
    "attack of a battery twice": (BATTLE + "--attacks pgd,fgsm,pgd", ["--attacks must name each only once, got 'pgd'"]),
    "no metric": (ON + "--metrics ,", ["--metrics", "at least one", "cosine"]),
    "attack": (ON + "--attack pgd,pgd-papr", ["--attack", "did you mean 'pgd-paper'", "'pgd-papr'"]),
    "loss": (ON + "--loss margins", ["loss", "did you mean 'margin'", "'margins'", "dlr"]),
    "norm": (ON + "--norm linfty", ["norm", "did you mean 'linf'", "'linfty'", "l2"]),
    "epsilon of words": (ON + "--epsilon abc", ["epsilon", "8/255", "'abc'"]),
    "negative epsilon": (ON + "--epsilon -1", ["epsilon", "at least 0", "'-1'"]),
    "negative epsilon, joined": (ON + "--epsilon=-8/255", ["epsilon", "at least 0", "'-8/255'"]),
    "nan epsilon": (ON + "--epsilon nan", ["epsilon", "8/255", "'nan'"]),
    "infinite epsilon": (ON + "--epsilon inf", ["epsilon", "8/255", "'inf'"]),
    "epsilon over nothing": (ON + "--epsilon 8/0", ["epsilon", "8/255", "'8/0'"]),
    "step size": (ON + "--step-size x", ["--step-size", "8/255", "'x'"]),
    "steps": (ON + "--steps 0", ["steps", "1", "got 0"]),
    "start": (ON + "--start zero", ["start", "ball", "'zero'"]),
    "restarts": (ON + "--restarts 0", ["restarts", "1", "got 0"]),
    "restarts from one point": (ON + "--restarts 2 --start none", ["restarts", "random start", "'none'"]),
    "reduction": (ON + "--reduction max", ["reduction", "sum", "'max'"]),
    "precision": (ON + "--precision float16", ["precision", "did you mean 'float64'", "'float16'"]),
    "precision of training": (TRAIN + "--mode sl --precision 16", ["precision", "did you mean 'bf16'", "'16'"]),
    "classes": (
        ON + "--dataset npz --data-root {world}/hundred.npz",
        ["CKPT: sl", "100 classes of hundred", "got 10"],
    ),
    "channels": (
        ON + "--dataset npz --data-root {world}/colour.npz",
        ["CKPT: sl takes images of 1 channel, colour has 3"],
    ),
    "folder missing": (TRAIN + "--mode sl --dataset folder --data-root {world}/none", ["--data-root", "{world}/none"]),
    "folder empty": (TRAIN + "--mode sl --dataset folder --data-root {world}/empty", ["--data-root", "train/"]),
    "folder hollow": (TRAIN + "--mode sl --dataset folder --data-root {world}/hollow", ["--data-root", "cat", ".png"]),
    "class in test alone": (
        TRAIN + "--mode sl --dataset folder --data-root {world}/lacking",
        ["--data-root", "{world}/lacking/test", "zebra"],
    ),
    "corrupt image": (
        TRAIN + "--mode sl --dataset folder --data-root {world}/corrupt",
        ["--data-root", "{world}/corrupt/train/dog/7.png"],
    ),
    "no cifar10": (ON + "--dataset cifar10 --data-root {world}/no", ["--data-root", "cifar-10-batches-py", "--down"]),
    "no fashion-mnist": (ON + "--dataset fashion-mnist --data-root {world}/no", ["--data-root", "t10k", "--download"]),
    "no folder": (ON + "--dataset folder --data-root {world}/file", ["--data-root", "train/", "got {world}/file"]),
    "no npz": (ON + "--dataset npz --data-root {world}/tree", ["--data-root", "must be an .npz file", "{world}/tree"]),
    "no tiny-imagenet": (
        ON + "--dataset tiny-imagenet --data-root {world}/empty",
        ["--data-root", "{world}/empty must hold train/"],
    ),
    "no folder given": (TRAIN + "--mode sl --dataset folder", ["--data-root", "must be given for 'folder'"]),
    "huge image size": (ON + "--image-size 100000", ["--image-size must be at most 4096, got 100000"]),
    "image size": (TRAIN + "--mode sl --image-size 16", ["--image-size", "8 pixels", "got 16"]),
    "too many samples": (ON + "--samples 360", ["--samples", "1 to 359", "got 360"]),
    "too many for the second": (
        ON + "{world}/grey.pt --samples 41",
        ["--samples", "1 to 40", "grey", "got 41"],
    ),
    "no samples": (ON + "--samples 0", ["--samples must be at least 1, got 0"]),
    "fewer than no samples": (ON + "--samples -3", ["--samples must be at least 1, got -3"]),
    "no images": (AROUND + "--images 0", ["--images must be at least 1, got 0"]),
    "samples in words": (ON + "--samples ten", ["--samples must be a whole number, got 'ten'"]),
    "analysis below a file": (ON + "--out {world}/file/results", ["--out", "{world}/file/results", "not writable"]),
    "analysis to a file": (ON + "--out {world}/file", ["--out must be a directory", "the file {world}/file"]),
    "training below a file": (TRAIN + "--mode sl --out {world}/file/c.pt", ["--out", "{world}/file", "not writable"]),
    "training to a directory": (TRAIN + "--mode sl --out {world}/other", ["--out", "{world}/other", "directory"]),
    "key in the file": (
        TRAIN + "--mode sl --config {world}/key.toml",
        ["batchsize", "did you mean 'batch_size'", "seed"],
    ),
    "key of a phase in the file": (
        TRAIN + "--mode sl --config {world}/below.toml",
        ["phases.0.learning_rat", "did you mean 'learning_rate'"],
    ),
    "learning rate set": (TRAIN + "--mode sl --set lr=0.1", ["--set: 'lr'", "pass phases.0.learning_rate=0.1 for"]),
    "epochs set": (TRAIN + "--mode sl --set epochs=3", ["--set: 'epochs'", "pass phases.0.epochs=3 for"]),
    "key set": (TRAIN + "--mode sl --set batchsize=3", ["--set: 'batchsize'", "did you mean 'batch_size'"]),
    "key of a phase set": (TRAIN + "--mode sl --set phases.0.epoch=3", ["phases.0.epoch", "did you mean 'epochs'"]),
    "phase that is not there": (
        TRAIN + "--mode sl --set phases.1.epochs=3",
        ["--set", "phases has 1 entry; its index must be 0, got '1'"],
    ),
    "table that is not there": (TRAIN + "--mode sl --set phase.0.epochs=3", ["--set", "did you mean 'phases'"]),
    "key of the data set": (TRAIN + "--mode sl --set data.root=x", ["root", "data_root"]),
    "no value": (TRAIN + "--mode sl --set seed", ["--set", "KEY=VALUE", "'seed'"]),
    "data that are no table": (TRAIN + "--mode sl --config {world}/data.toml", ["data", "table", "dataset", "got 3"]),
    "malformed file": (TRAIN + "--mode sl --config {world}/malformed.toml", ["--config", "malformed.toml", "line 1"]),
    "missing file": (TRAIN + "--mode sl --config {world}/no.toml", ["--config", "{world}/no.toml", "No such file"]),
    "existing checkpoint": (
        "train --mode sl --out {world}/sl.pt",
        ["--out", "sl.pt, which exists", "--overwrite"],
    ),
    "existing results": (
        "analyze {world}/rl.pt --out {world}/results",
        ["--out", "{world}/results", "--overwrite"],
    ),
    "nothing to resume": ("train --mode sl --resume --out {world}/no.pt", ["--resume", "{world}/no.pt"]),
    "complete run": ("train --mode sl --resume --out {world}/sl.pt", ["--resume", "{world}/sl.pt", "complete"]),
    "missing checkpoint": (ANALYZE + "{world}/no.pt", ["CKPT", "{world}/no.pt", "No such file"]),
    "name of a network": (
        ANALYZE + "resnet18",
        ["CKPT must be a file of a model, got resnet18", "write torchvision:resnet18"],
    ),
    "name of code": (ANALYZE + "this", ["CKPT must be a file of a model, got this", "write this:FACTORY"]),
    "file that is no checkpoint": (
        ANALYZE + "{world}/file",
        ["CKPT", "{world}/file", "an undamaged file of tensors"],
    ),
    "directory as checkpoint": (ANALYZE + "{world}/other", ["CKPT", "{world}/other", "directory"]),
    "truncated checkpoint": (ANALYZE + "{world}/truncated.pt", ["CKPT", "truncated.pt", "is truncated"]),
    "code in a checkpoint": (ANALYZE + "{world}/code.pt", ["CKPT", "code.pt", "refused", "never runs code"]),
    "code in a bare pickle": (
        ANALYZE + "{world}/pickle.pt",
        ["CKPT", "pickle.pt", "an undamaged file of tensors"],
    ),
    "bare weights": (ANALYZE + "{world}/weights.pt", ["CKPT", "weights.pt", "torchvision:NAME", "--weights"]),
    "checkpoint twice": (ON + "{world}/rl.pt {world}/sl.pt", ["CKPT", "once", "{world}/sl.pt"]),
    "checkpoint twice, otherwise written": (ON + "{world}/other/../sl.pt", ["CKPT", "once", "other/../sl.pt"]),
    "bad second checkpoint": (ON + "{world}/truncated.pt", ["CKPT", "truncated.pt"]),
    "second checkpoint that does not fit": (
        ON + "{world}/colour.pt --dataset digits",
        ["CKPT: colour", "3 channel", "digits has 1"],
    ),
    "weights of no foreign model": (
        ON + "--weights {world}/weights.pt",
        ["--weights must be left out if no model is foreign: a checkpoint"],
    ),
    "weights that are none": (
        ANALYZE + "torchvision:resnet18 --dataset digits --weights {world}/key.toml",
        ["--weights", "{world}/key.toml", "an undamaged file of tensors"],
    ),
    "too few weights": (
        ANALYZE + "a:b torchvision:resnet18 --dataset digits --weights {world}/weights.pt",
        ["--weights", "(2)", "got 1"],
    ),
    "foreign model without weights": (
        ANALYZE + "torchvision:resnet18 --dataset digits",
        ["--weights", "torchvision:resnet18"],
    ),
    "foreign model without data": (
        ANALYZE + "torchvision:resnet18 --weights {world}/weights.pt",
        ["--dataset", "torchvision:resnet18"],
    ),
    "foreign model that is unknown": (
        ANALYZE + "torchvision:resnet19 --dataset digits --weights {world}/weights.pt",
        ["CKPT", "'resnet19'", "did you mean 'resnet18'"],
    ),
    "weights of another model": (
        ANALYZE + "torchvision:resnet18 --dataset digits --weights {world}/weights.pt",
        ["--weights", "weights.pt does not fit torchvision:resnet18", "missing", "unexpected"],
    ),
    "mean in words": (ON + "--mean a,b", ["--mean must be a number in every entry, got 'a'"]),
    "mean without std": (
        ANALYZE + "torchvision:resnet18 --dataset digits --weights {world}/weights.pt --mean 0.5",
        ["--std must be given with --mean", "None"],
    ),
    "mean for our own": (ON + "--mean 0.5 --std 0.5", ["--mean", "foreign"]),
    "code without trust": (ANALYZE + "a.b:make --dataset digits", ["CKPT", "a.b:make", "--trust-code"]),
    "stand-in without trust": (AUDIT + "--backward a.b:f", ["--backward", "a.b:f", "--trust-code"]),
    "stand-in that is none": (AUDIT + "--backward 0=mine", ["--backward", "package.module:function", "'mine'"]),
    "stand-in of no part": (AUDIT + "--backward filter=identity", ["--backward", "'filter' is unknown"]),
    "batch size": (ON + "--batch-size 0", ["--batch-size", "1"]),
    "batch size of training": (TRAIN + "--mode sl --batch-size 0", ["--batch-size", "2", "got 0"]),
    "epochs": (TRAIN + "--mode sl --epochs 0", ["--epochs", "1"]),
    "fewer epochs than phases": (TRAIN + "--mode sl-adv", ["--epochs", "2", "got 1"]),
    "device": (ON + "--device gpu", ["--device", "did you mean 'cpu'", "'gpu'", "cuda"]),
    "device of training": (TRAIN + "--mode sl --device gpu", ["--device", "did you mean 'cpu'", "'gpu'", "cuda"]),
    "seed": (ON + "--seed -1", ["--seed", "0"]),
    "seed of training": (TRAIN + "--mode sl --seed -1", ["seed", "0", "got -1"]),
    "no mode": (TRAIN, ["--mode"]),
    "no checkpoint": (ANALYZE, ["CKPT"]),
    "option": (TRAIN + "--mode sl --epoch 3", ["--epoch", "train --help"]),
    "command": ("analyse {world}/sl.pt", ["'analyse'", "--help"]),
    "listing": ("list metric", ["'metric'", "metrics", "architectures"]),
    "space": (AROUND + "--space input-space", ["--space", "did you mean 'input'", "'input-space'", "weights"]),
    "one point": (AROUND + "--points 1", ["--points must be at least 2, got 1"]),
    "no span": (AROUND + "--span 0", ["--span must be above 0, got 0"]),
    "radius of 255": (ON + "--norm linf --epsilon 8", ["--epsilon must be in pixel units", '"8/255"; got 8']),
    "radius of 255 in an audit": (AUDIT + "--norm linf --epsilon 8", ["--epsilon must be in pixel units", "got 8"]),
    "radii of 255": (BATTLE + "--norm linf --epsilons 2,4", ["--epsilons must be in pixel units", "got 2"]),
    "radius past the diameter": (ON + "--epsilon 9", ["--epsilon must be", "at most 8 in l2 for 1 x 8 x 8", "got 9"]),
    "no radius": (AROUND + "--epsilon 0", ["--epsilon", "above 0", "got 0"]),
    "index in words": (
        "landscape --overwrite --out {world}/results {world}/sl.pt --index a,b",
        ["--index must be a whole number in every entry, got 'a'"],
    ),
    "index that is not there": (
        "landscape --overwrite --out {world}/results {world}/sl.pt --index 3,359",
        ["--index", "0 to 358", "got 359"],
    ),
    "index and images": (AROUND + "--index 3", ["--index", "images"]),
    "shared plane of one": (AROUND + "--plane shared", ["--plane", "two checkpoints", "got 1"]),
    "two data sets": (AROUND + "{world}/grey.pt", ["CKPT", "one data set", "digits", "grey", "--dataset"]),
    "weights' option around images": (AROUND + "--line", ["--line must be left out unless --space is weights"]),
    "images' option around weights": (WEIGHTS + "--right", ["--right must be left out unless --space is input"]),
    "towards itself": (WEIGHTS + "--towards {world}/sl.pt", ["CKPT", "once"]),
    "towards another shape": (
        WEIGHTS + "--dataset digits --ignore-class-names --towards {world}/large.pt",
        ["--towards must be of the architecture of sl, cnn2, got large, which is cnn4"],
    ),
    "alignment with nothing": (WEIGHTS + "--align", ["--align must be left out without --towards"]),
    "curve of a plane": (
        WEIGHTS + "--towards {world}/rl.pt --curve bezier",
        ["--curve must be given with --towards and --line"],
    ),
    "attack that is not made": (WEIGHTS + "--epsilon 0.5", ["--epsilon", "adversarial"]),
    "metric without a factory": (
        WEIGHTS + "--trust-code --metric make",
        ["--metric", "package.module:factory", "'make'"],
    ),
    "no epochs": (WEIGHTS + "--epochs {world}/tree", ["--epochs", "--keep-epochs", "{world}/tree"]),
    "metric without trust": (WEIGHTS + "--metric a.b:make", ["--metric", "a.b:make", "--trust-code"]),
    "landscape attack": (AROUND + "--attack pgd-papr", ["--attack", "did you mean 'pgd-paper'"]),
    "attack of the battery": (BATTLE + "--attacks pgd,sqare", ["--attacks", "did you mean 'square'", "'sqare'", "fab"]),
    "no attack": (BATTLE + "--attacks ,", ["--attacks", "at least one", "square"]),
    "norm of the battery": (BATTLE + "--norm l1", ["norm", "'l1'", "linf"]),
    "radius of the battery": (BATTLE + "--epsilon x", ["epsilon", "8/255", "'x'"]),
    "a ball that is a point": (BATTLE + "--epsilon 0", ["epsilon", "above 0", "got 0"]),
    "radius of the curve": (BATTLE + "--epsilons 0.5,,1", ["epsilons.1", "8/255", "''"]),
    "queries": (BATTLE + "--queries 0", ["queries", "1", "got 0"]),
    "step of the battery": (BATTLE + "--step-size -1", ["--step-size", "at least 0", "'-1'"]),
    "samples of the battery": (BATTLE + "--samples 360", ["--samples", "1 to 359", "got 360"]),
    "surrogate for nobody": (BATTLE + "--surrogate {world}/rl.pt", ["--surrogate", "pgd-from, transfer", "got pgd"]),
    "surrogate with other channels": (
        BATTLE + "--attacks transfer --surrogate {world}/colour.pt",
        ["--surrogate: colour", "3 channels, digits has 1"],
    ),
    "budget of an audit": (AUDIT + "--budget quik", ["--budget", "did you mean 'quick'", "standard", "full"]),
    "norm of an audit": (AUDIT + "--norm l1", ["norm", "'l1'", "linf"]),
    "radius of an audit": (AUDIT + "--epsilon 0", ["epsilon", "above 0", "got 0"]),
    "samples of an audit": (AUDIT + "--samples 0", ["--samples must be at least 1, got 0"]),
    "surrogate of an audit": (AUDIT + "--surrogate {world}/colour.pt", ["--surrogate: colour", "3 channel", "has 1"]),
    "surrogate that is not there": (AUDIT + "--surrogate {world}/no.pt", ["{world}/no.pt", "cannot be read"]),
    "audit of one model twice": (AUDIT + "{world}/sl.pt", ["CKPT", "once", "sl.pt"]),
    "audit of two shapes": (AUDIT + "{world}/colour.pt", ["CKPT", "one shape", "(1, 8, 8)", "(3, "]),
    "existing results of an audit": ("audit {world}/rl.pt --out {world}/results", ["{world}/results", "--overwrite"]),
    "transfer of one": (SHOWN, ["CKPT must be at least two models", "got 1"]),
    "transfer between data sets": (SHOWN + "{world}/grey.pt", ["CKPT", "one data set", "digits", "grey", "--dataset"]),
    "transfer between shapes": (
        SHOWN + "{world}/colour.pt --dataset digits",
        ["CKPT: colour", "3 channel", "digits has 1"],
    ),
    "attack of the transfer": (SHOWN + "{world}/rl.pt --attack pdg", ["--attack", "did you mean 'pgd'", "'pdg'"]),
    "existing results of an attack": ("attack {world}/rl.pt --out {world}/results", ["{world}/results", "--overwrite"]),
    "no results to draw": ("figures {world}/tree", ["DIR", "steps.csv", "{world}/tree"]),
    "no results to judge": ("claims {world}/tree", ["DIR", "must hold results", "{world}/tree"]),
    "no directory to judge": ("claims {world}/results {world}/no", ["DIR", "{world}/no"]),
    "results to judge of another schema": ("claims {world}/later", ["DIR", "later/manifest.json", "schema 1, got 2"]),
    "no directory to draw": ("figures {world}/no", ["DIR", "{world}/no", "not a directory"]),
    "no results to report": ("report {world}/empty", ["DIR", "steps.csv", "{world}/empty", "sub-directories"]),
    "no directory to report": ("report {world}/no", ["DIR", "{world}/no", "directory"]),
    "file to report": ("report {world}/file", ["DIR", "{world}/file", "directory"]),
    "results cut short to report": ("report {world}/cut", ["DIR", "{world}/cut/steps.csv", "lacks the columns"]),
    "manifest that is none to report": ("report {world}/unsaid", ["DIR", "{world}/unsaid/manifest.json", "not JSON"]),
}


@pytest.fixture(scope="module")
def before(world: Path, content: Content) -> dict[str, bytes]:
    """The world before anything is refused."""
    return content(world)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_loses_nothing(
    world: Path, before: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, case: str, run: Run, content: Content
) -> None:
    def work(*arguments: object, **options: object) -> None:
        pytest.fail("the work began before the mistake was found")

    monkeypatch.setattr(loop.Run, "_epoch", work)
    monkeypatch.setattr(analyze, "measure_trajectory", work)
    monkeypatch.setattr(input_landscape, "attack_walk", work)
    monkeypatch.setattr(weight_landscape, "evaluate_plane", work)
    monkeypatch.setattr(attack, "evaluate", work)
    monkeypatch.setattr(transfer, "make_examples", work)
    monkeypatch.setattr(models, "make_examples", work)
    monkeypatch.setattr(audit, "examine", work)
    line, expected = BAD[case]
    ended = run(*line.format(world=world).split())
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("gradscope: ")
    assert ended.err.endswith("\n")
    assert len(ended.err.splitlines()) == 1
    missing = [words for words in expected if words.format(world=world) not in ended.err]
    assert not missing, ended.err
    assert content(world) == before


def test_an_absent_cuda_device_is_named(world: Path, before: dict[str, bytes], run: Run, content: Content) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for line in (TRAIN + "--mode sl --device cuda", ON + "--device cuda"):
        ended = run(*line.format(world=world).split())
        assert ended.code == 2
        assert "--device must be auto or cpu" in ended.err
        assert len(ended.err.splitlines()) == 1
    assert content(world) == before


#: What must be refused before torch is loaded, for a user waits for torch for seconds.
EARLY = (
    "file that is no checkpoint",
    "name of a network",
    "name of code",
    "file in the place of a data set",
    "truncated checkpoint",
    "directory as checkpoint",
    "no samples",
    "no images",
    "no cifar10",
    "no fashion-mnist",
    "no folder",
    "no npz",
    "folder missing",
    "no tiny-imagenet",
    "weights that are none",
)


def test_what_can_be_is_refused_before_torch_is_loaded(world: Path) -> None:
    lines = [BAD[case][0].format(world=world).split() for case in EARLY]
    script = (
        "import sys\nfrom gradscope.cli import main\n"
        f"for line in {lines!r}:\n"
        "    try:\n        main(line)\n    except SystemExit as ended:\n"
        "        print(ended.code, 'torch' in sys.modules, 'pandas' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gradscope.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["2 False False"] * len(EARLY), ended.stderr


LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        "train --mode sl --out PATH",
        "train --mode sl --config PATH",
        "train --mode sl --dataset npz --data-root PATH",
        "analyze PATH",
        "analyze {world}/sl.pt --out PATH",
        "analyze torchvision:resnet18 --dataset digits --weights PATH",
        "landscape {world}/sl.pt --space weights --towards PATH",
        "attack {world}/sl.pt --attacks transfer --surrogate PATH",
        "study PATH",
        "study {world}/no.toml --checkpoints PATH",
        "study {world}/no.toml --out PATH",
        "claims PATH",
        "claims {world}/other --out PATH",
        "figures PATH",
        "report PATH",
    ],
)
@pytest.mark.parametrize(
    "path",
    ["", LONG, "a\0b", "a\nb", os.fsdecode(b"\xff"), "{world}/loop"],
    ids=["empty", "long", "nul", "newline", "bytes", "loop"],
)
def test_what_is_no_path_is_refused_in_one_line(run: Run, world: Path, command: str, path: str) -> None:
    loop = world / "loop"
    if not loop.is_symlink():
        loop.symlink_to("loop")
    words = [word.replace("PATH", path).format(world=world) for word in command.split()]
    flag = next((words[at - 1] for at, word in enumerate(command.split()) if word == "PATH" and at > 1), words[0])
    ended = run(*words)
    loop.unlink()
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    named = flag if flag.startswith("--") else {"analyze": "CKPT", "study": "RECIPE"}.get(words[0], "DIR")
    assert ended.err.startswith(f"gradscope: {named}")
    if not path:
        assert ended.err == f"gradscope: {named} must not be empty\n"


def test_a_setting_may_have_several_lines(run: Run, world: Path) -> None:
    ended = run("train", "--mode", "sl", "--out", world / "sl.pt", "--set", "phases=[\n]\n")
    assert "must be text" not in ended.err
