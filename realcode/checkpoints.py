"""A checkpoint that the user names: a folder in Hugging Face's layout, or a GGUF file.

A folder of a stage, in --out, has this layout too.
"""

import hashlib
import json
import shutil
from pathlib import Path

from realcode.gguf_file import is_gguf, load_gguf, write_folder_files
from realcode.pretrained import load_model, save_published
from realcode.tokenizer_files import load_tokenizer, tokenizer_files
from support.checkpoint import Checkpoint
from support.digest import fingerprint
from support.files import read_json, write_text


def load_checkpoint(folder, device, dtype=None, name=None):
    """The Checkpoint in a folder, ours or of a published family, or in a GGUF file.

    dtype: None for the file's own. name: None for one derived from dtype and the content of the
    files, and from the code that reads them. FileNotFoundError or ValueError says in one sentence
    what cannot be used.
    """
    folder = Path(folder)
    if is_gguf(folder):
        (model, encoding), paths = load_gguf(folder, device, dtype), [folder]
    else:
        model, encoding = load_model(folder, device, dtype), load_tokenizer(folder)
        paths = [*folder.glob("*.safetensors"), folder / "config.json", *tokenizer_files(folder)]
    model.eval().writable = encoding.n_vocab  # a published head has more rows than tokens
    model.name = name or fingerprint([str(model.dtype), list(map(content_of, sorted(paths))),
                                      load_checkpoint])
    return Checkpoint(model, encoding, folder)


def content_of(path):
    """(name, size, digest) of a file: of all of it up to a megabyte, else of 1,024 pieces.

    They lie at equal distances and have a kilobyte each, with the header of the weights among them:
    a copy is the same file, and training changes all of them.
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for k in range(1024):
            file.seek(k * max(size - 1024, 0) // 1023 if size > 2**20 else k * 1024)
            digest.update(file.read(1024))
    return path.name, size, digest.hexdigest()


def save_checkpoint(checkpoint, folder):
    """Writes a Checkpoint as a folder; the files of its tokenizer are copied from where it was.

    The stop token that was trained is among those that end a text for other software too.
    """
    ends, stop = checkpoint.model.config.eos_token_id, checkpoint.encoding.stop
    named = stop in (ends if isinstance(ends, list) else [ends])
    save_published(checkpoint.model, folder, eos_token_id=ends if named else stop)
    if is_gguf(checkpoint.folder):
        write_folder_files(checkpoint.folder, folder)
    else:
        for path in tokenizer_files(checkpoint.folder):
            copy_to = Path(folder, path.relative_to(checkpoint.folder))
            copy_to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy_to)
    path = Path(folder, "generation_config.json")
    generation = read_json(path)
    if generation and generation.get("eos_token_id") in (None, []):
        write_text(path, json.dumps({**generation, "eos_token_id": stop}, indent=1) + "\n")
