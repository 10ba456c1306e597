import pytest

from gradscope.config import Data
from gradscope.data import sources
from gradscope.data.image_set import Splits
from gradscope.study.stages import configure_training, run_training
from gradscope.training.hardware import Hardware


@pytest.fixture(scope="session")
def digits() -> Splits:
    return sources.load(Data())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Checkpoints ``sl.pt``, its epochs beside it, and ``rl.pt``, on digits."""
    root = tmp_path_factory.mktemp("checkpoints")
    for mode, epochs in (("sl", 3), ("rl", 4)):
        training, splits = configure_training(
            mode, {}, paper=False, table={}, settings=(), epochs=epochs, options={}, download=False
        )
        out = root / f"{mode}.pt"
        run_training(training, splits, out, Hardware("cpu"), resume=False, overwrite=False, keep_epochs=mode == "sl")
    return [str(root / f"{mode}.pt") for mode in ("sl", "rl")]
