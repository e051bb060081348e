"""A checkpoint that the user names: a folder in Hugging Face's layout, or a GGUF file.

A folder of a stage, in --out, has this layout too.
"""

import shutil
from pathlib import Path

from realcode.gguf_file import is_gguf, load_gguf, write_folder_files
from realcode.pretrained import load_model, save_published
from realcode.tokenizer_files import load_tokenizer, tokenizer_files
from support.checkpoint import Checkpoint
from support.digest import fingerprint


def load_checkpoint(folder, device, dtype=None, name=None):
    """The Checkpoint in a folder, ours or of a published family, or in a GGUF file.

    dtype: None for the file's own. name: None for one derived from folder, dtype and files, and
    from the code that reads them. FileNotFoundError or ValueError says in one sentence what cannot
    be used.
    """
    folder = Path(folder)
    if is_gguf(folder):
        (model, encoding), paths = load_gguf(folder, device, dtype), [folder]
    else:
        model, encoding = load_model(folder, device, dtype), load_tokenizer(folder)
        paths = [*folder.glob("*.safetensors"), folder / "config.json", *tokenizer_files(folder)]
    model.eval().writable = encoding.n_vocab  # a published head has more rows than tokens
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    model.name = name or fingerprint([str(folder.resolve()), str(model.dtype), files,
                                      load_checkpoint])
    return Checkpoint(model, encoding, folder)


def save_checkpoint(checkpoint, folder):
    """Writes a Checkpoint as a folder; the files of its tokenizer are copied from where it was."""
    save_published(checkpoint.model, folder)
    if is_gguf(checkpoint.folder):
        return write_folder_files(checkpoint.folder, folder)
    for path in tokenizer_files(checkpoint.folder):
        copy_to = Path(folder, path.relative_to(checkpoint.folder))
        copy_to.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy_to)
