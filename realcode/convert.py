"""python empower.py convert MODEL DIR: a GGUF file or a stage as a folder that others load."""

import dataclasses
import os
from pathlib import Path

from realcode.checkpoints import save_checkpoint
from realcode.given import DTYPE, loaded
from support.cli import UserError, flag
from support.files import replacing


@dataclasses.dataclass(frozen=True)
class Config:
    """The file to convert, and where to."""

    model: str = flag("", "a GGUF file, or the folder of a stage in --out", positional=True)
    folder: str = flag("", "the new folder", positional=True)
    dtype: str = flag("auto", DTYPE)


def convert(cfg):
    """Writes the checkpoint in a GGUF file or a stage as a folder that transformers reads too."""
    folder = Path(cfg.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}: name a new "
                        "folder")
    if folder.is_symlink() or os.path.ismount(folder):
        raise UserError(f"{folder} cannot be replaced by a finished folder: name a new one, not a "
                        "link or a mount point")
    found = loaded(cfg, "cpu")
    with replacing(folder) as new:
        save_checkpoint(found, new)
    print(f"The checkpoint is in {folder}. Try: python empower.py show FILE --model {folder}")
