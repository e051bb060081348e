"""Keeps the results of calls in a folder: a stage is a call, and it is made once.

    kept = Cache("out")
    base = kept("base", pretrain, settings, texts)   # what pretrain(settings, texts) returns

A stage is the folder OUT/stages/NAME-KEY. The key is a digest of the call: of its arguments, and of
the byte code of the function and of all project code that it refers to. So editing the GPT, the
game or the trainer in place changes the next run, and editing a comment does not. Keyword arguments
only say where and how to work; they are not part of the key.

A stage is written under a temporary name and then moved into place: after `kill -9` it is either
complete or missing, and if two runs make it at the same time, the first to finish wins.
"""

import json
import os
import shutil
import time
from pathlib import Path

from support import checkpoint
from support.checkpoint import Checkpoint
from support.cli import UserError, reading
from support.digest import fingerprint
from support.files import remove_leftovers, slug, temporary_name, write_text

VERSION = 4  # of the layout of --out; a folder written by another version is refused


class Cache:
    """The finished stages in the folder `out`. A UserError says why a folder cannot be used.

    layout: the module with `load_checkpoint` and `save_checkpoint` for the models among them.
    folders: {name: folder} of the stages that were made or reused.
    """

    def __init__(self, out, device="cpu", layout=checkpoint):
        self.out, self.device, self.layout, self.folders = Path(out), device, layout, {}
        self.stages = self.out / "stages"
        open_folder(self.out)
        for folder in (self.out, self.stages, self.out / "transcripts"):
            remove_leftovers(folder)

    def __call__(self, name, function, *arguments, **how):
        """function(*arguments, **how), made now or kept: a Checkpoint, or plain data.

        Plain data comes back as JSON has it: tuples as lists, keys as text.
        """
        folder = self.stages / f"{slug(name)}-{fingerprint([function, arguments])}"
        self.folders[name] = folder.name
        if folder.exists():
            print(f"  {name}: reused from {folder}")
        else:
            begin, value = time.time(), function(*arguments, **how)
            self._keep(folder, value)
            print(f"  {name}: {time.time() - begin:.0f} s, kept in {folder}")
        with reading(folder):
            if (folder / "value.json").exists():
                return json.loads((folder / "value.json").read_text(encoding="utf-8"))
            return self.layout.load_checkpoint(folder, self.device, name=folder.name)

    def _keep(self, folder, value):
        """Writes a stage, unless another run was faster."""
        new = temporary_name(folder)
        new.mkdir(parents=True)
        try:
            if isinstance(value, Checkpoint):
                self.layout.save_checkpoint(value, new)
            else:
                write_text(new / "value.json", json_rows(value))
            if not folder.exists():
                os.rename(new, folder)
        except OSError:
            if not folder.exists():  # otherwise another run has made it in the meantime
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


def open_folder(out):
    """Creates the folder of a run; refuses one that is not empty and was not written by a run."""
    mark = out / "version"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            # Unfinished files, and folders of other runs inside this one, are ours.
            foreign = [path for path in out.iterdir()
                       if path.suffix != ".tmp" and not (path / "stages").is_dir()]
            if foreign and not mark.exists():
                raise UserError(f"--out {out} is not empty and was not written by this program (it "
                                f"holds {foreign[0].name}): choose a new or empty folder")
            write_text(mark, f"{VERSION}\n")
        found = mark.read_text().strip()
    except UnicodeError:
        found = "unknown"
    except OSError as error:
        raise UserError(f"cannot write to --out {out} ({error.strerror}): choose another folder") \
            from None
    if found != str(VERSION):
        raise UserError(f"{out} was written by version {found} of this program, but this is "
                        f"version {VERSION}: choose another --out or remove that folder")


def json_rows(value):
    """Plain data as JSON; a list has one element per line, for easy reading and searching."""
    if not isinstance(value, list):
        return json.dumps(value, indent=2) + "\n"
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]\n"
